"""The Ray side: what turns the core's decisions into Serve applications, and their news into events.

What runs where:
    head      `allocator` holds the scheduler; `executor` (its thread) is the only caller of Serve
    any node  `node_agent` measures (`measuring`) and sees runners die; `warm_workers` keeps a spare process
              `runner` hosts one engine, in a placement group of exactly the ledger's bytes

Read in this order: `names`, `resources` and `inventory` (what a node lends), `placement_groups` (a placement
as Ray holds it), `reports` (what our actors tell each other), `runner`, `node_agent`, `executor`; then what the
allocator is made of: `mailbox`, `roster` (runners), `membership` (nodes), `lease_book` (clients), `dispatch`
(decisions), `housekeeping`, `recovery` (its restart), `journal`, `status_view`, `agreement` (Ray and the ledger);
last `start` (up and down) with `ray_head`, and the clients' side: `allocator_calls`, `holder`.
"""
