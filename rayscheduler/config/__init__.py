"""Files that people write, turned into the core's values or into one line that says what is wrong.

Read in this order: `values` and `units` (scalars), `yaml_lines` (a file with its line numbers),
`fields` (the kinds of values as pydantic types), `models` and `nodes` (sections), then the two files
made of them: `service` (what `rayscheduler up` reads) and `scenario` (what `simulate` reads).
"""
