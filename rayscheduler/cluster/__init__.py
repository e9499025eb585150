"""The Ray side: what turns the core's decisions into Serve applications, and their news into events.

Read in this order: `names` and `resources` (what a node lends), `placement_groups` (a placement as Ray
holds it), `runner` and `node_agent` (the actors on the nodes), `executor` (the only caller of Serve),
`roster`, `membership` and `leases` (what the allocator knows about runners, nodes and clients),
`allocator` (the actor that holds the scheduler), `recovery` (its restart), `start` (up and down).
"""
