"""Files become data that knows its lines; what is no file, no YAML or a trap is told in one line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from rayscheduler.config.values import Plain
from rayscheduler.config.yaml_lines import load_file, load_text
from rayscheduler.errors import ConfigError


@pytest.fixture(params=["libyaml", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers: libyaml's, and PyYAML's own where that is not installed."""
    if request.param == "python":
        monkeypatch.setitem(sys.modules, "yaml.cyaml", None)


def told(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f.yaml")
    return str(caught.value)


@pytest.mark.usefixtures("_parser")
def test_every_value_knows_its_line() -> None:
    models = "models:\n  - name: a\n    gpus:\n      - 1\n      - 2\n  - {name: b,\n     memory: 5}\n"
    document = load_text(f"# a comment\n{models}until:\n  1h\n", "f.yaml")
    lines = {
        (): 2,
        ("models",): 2,
        ("models", 0): 3,
        ("models", 0, "name"): 3,
        ("models", 0, "gpus"): 4,
        ("models", 0, "gpus", 1): 6,
        ("models", 1): 7,
        ("models", 1, "memory"): 8,
        ("until",): 10,
        ("models", 1, "nothing of the kind", "below"): 7,
    }
    assert {path: document.line(path) for path in lines} == lines


@pytest.mark.usefixtures("_parser")
def test_unquoted_scalars_stay_text() -> None:
    document = load_text("a: 1.50\nb: on\nc: '7'\nd: ~\ne: null\nf:\n1: 2024-01-02\ng: !!str 5\nh: |\n  text\n", "f")
    assert document.data == {
        "a": "1.50", "b": "on", "c": "7", "d": None, "e": None, "f": None, "1": "2024-01-02", "g": "5", "h": "text\n",
    }  # fmt: skip
    kinds = {key: type(value) for key, value in document.data.items()}
    assert [key for key, kind in kinds.items() if kind is Plain] == ["a", "b", "1"]


@pytest.mark.usefixtures("_parser")
def test_anchors_and_merges() -> None:
    document = load_text(
        "x: &x {memory: 1, cpus: 2}\ny:\n  <<: *x\n  cpus: 3\nz: [*x, *x]\nw: {<<: [*x, {d: 4}]}\n", "f"
    )
    assert document.data == {
        "x": {"memory": "1", "cpus": "2"},
        "y": {"memory": "1", "cpus": "3"},
        "z": [{"memory": "1", "cpus": "2"}] * 2,
        "w": {"memory": "1", "cpus": "2", "d": "4"},
    }
    assert document.line(("y", "cpus")) == 4
    assert document.line(("y", "memory")) == 1


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1: the file is empty; write at least `models:` and a list of models"),
        ("# nothing\n\n", "f.yaml:1: the file is empty; write at least `models:` and a list of models"),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: the key 'a' stands twice, first in line 1; keep one of them"),
        ('{"a": 1,\n\t"b": 2,\n\t"a": 3}', "f.yaml:3: the key 'a' stands twice, first in line 1; keep one of them"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second YAML document starts; keep one document in a file"),
        ("a: !!python/name:os.system x\n",
         "f.yaml:1: the YAML tag 'tag:yaml.org,2002:python/name:os.system' means nothing here; remove it"),
        ("a: !mine {b: 1}\n", "f.yaml:1: the YAML tag '!mine' means nothing here; remove it"),
        ("a: 1\n? [b]\n: 2\n", "f.yaml:2: a list is used as a key; write a name before the colon"),
        ("a: 1\n~: 2\n", "f.yaml:2: a key is empty; write a name before the colon"),
        ("a: *b\n", "f.yaml:1: *b has no finished &b before it; write &b at the value that it stands for"),
        ("a: &a [*a]\n", "f.yaml:1: *a has no finished &a before it; write &a at the value that it stands for"),
        ("a: 1\nb: {<<: 5}\n", "f.yaml:2: << merges mappings, not '5'; write for example <<: *defaults"),
        ("a: 1\nb: \x07\n", "f.yaml:2: holds the character U+0007; remove it"),
        ("a: \ud800\n", "f.yaml:1: holds the character U+D800; remove it"),
        ("a:\n  - " + "[" * 60 + "]" * 60, "f.yaml:2: is nested deeper than 50 levels; flatten it"),
    ],
)  # fmt: skip
def test_what_is_no_plain_document(text: str, message: str) -> None:
    assert told(text) == message


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1, 2\nb: 3\n", 2), ("a: 1\n b: 2\n", 2), ("a: 'open\n", 1), ("}", 1), ("a: 1\n%%\n", 2), ("a: @b\n", 1)],
)
def test_broken_yaml_is_told_with_its_line(text: str, line: int) -> None:
    message = told(text)
    assert message.startswith(f"f.yaml:{line}: broken YAML: "), message
    assert message.endswith("; check indentation, brackets and quotes at and above this line")


def test_a_tab_as_indentation_has_a_fix_of_its_own() -> None:
    assert told("a:\n\tb: 1\n").endswith("; indent with spaces, not with tabs")


def test_json_is_read_as_json() -> None:
    text = '{\n\t"a": [1, 2.50, true, null, "\\ud83d\\ude00\\/"],\n\t"b": {\n\t\t"c": 3e2\n\t}\n}'
    document = load_text(text, "f.json")
    assert document.data == {"a": ["1", "2.50", True, None, "😀/"], "b": {"c": "3e2"}}
    assert json.loads(text)["a"][4] == document.data["a"][4]
    assert document.line(("b", "c")) in (1, 4)  # YAML's parser knows no pairs of surrogates: then the line is 1
    assert load_text('{\n\t"b": {\n\t\t"c": 3\n\t}\n}', "f.json").line(("b", "c")) == 3


@pytest.mark.usefixtures("_parser")
def test_aliases_do_not_blow_up() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20)
    )
    assert told(laughs) == (
        "f.yaml:6: aliases unfold to more than 1000000 values; write the values out, or use fewer aliases"
    )


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "- " * 20_000, "{a: " * 5000, "\n" * 10**6])
def test_deep_and_long_nonsense_ends_soon(text: str) -> None:
    before = time.monotonic()
    assert "\n" not in told(text)
    assert time.monotonic() - before < 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load_file(str(missing))
    assert str(caught.value) == f"{missing}: there is no such file; check the path"
    with pytest.raises(ConfigError, match="is a directory; name a file in it"):
        load_file(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte; check the path"):
        load_file("a\0b")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: ü\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not UTF-8 text; save the file as UTF-8"):
        load_file(str(latin))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match=r"large\.yaml: is larger than 1 MiB; split it, or keep it under 1 MiB"):
        load_file(str(large), bytes_max=2**20)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    marked = tmp_path / "f.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = load_file(str(marked))
    assert document.data == {"a": "1", "b": "2"}
    assert document.line(("b",)) == 2
