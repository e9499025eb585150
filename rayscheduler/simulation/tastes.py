"""What stories are about: each taste makes much of one kind of trouble, so that it meets itself.

Rules of this file: values to draw from, no drawing. Whatever a taste says, what is drawn is a legal scenario.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Taste:
    """What a story is about: some faults only show where much of one kind comes together.

    `kinds` are the requirements that models draw from (see `drawn_fleet.py`), `shares` their sizes in percent
    of a device. `operated` and `struck`: how many operators' verbs and faults.
    """

    nodes: tuple[int, ...] = (1, 1, 2, 2, 3)
    devices: tuple[int, ...] = (1, 1, 2, 2, 4)
    shares: tuple[int, ...] = (10, 25, 45, 60, 60, 95, 100)
    models: tuple[int, int] = (3, 7)
    kinds: tuple[str, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ((1, 2, 4, 8), (1, 2, 4, 8), (1,), (2,), (2, 4))
    millicpus: tuple[int | None, ...] = (None, None, 4_000, 16_000)
    headroom_gib: tuple[int, ...] = (0, 0, 4)
    patience_ms: tuple[int | None, ...] = (None, None, 1_000, 5_000, 20_000, 60_000)
    policies: tuple[int, ...] = (65, 17, 18)  # weights: fifo, serial, groups
    peculiar: float = 0.5
    cancels: float = 0.12
    operated: tuple[int, ...] = (0, 2, 5)
    changed: tuple[int, ...] = (0, 0, 1, 3)
    struck: tuple[int, ...] = (0, 4, 10, 18)
    queue_limit: tuple[int, ...] = (1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 3, 10)
    asleep: float = 0.3  # how many of the models can sleep
    durations_ms: tuple[int | None, ...] = (50, 500, 500, 3_000, 12_000, None)  # None: until its client says so
    load_ms: tuple[int, ...] = (0, 100, 1_000, 4_000, 15_000)
    unload_ms: tuple[int, ...] = (0, 0, 200, 2_000, 5_000)


TIGHT = (45, 60, 95)
TASTES = (
    Taste(),
    Taste(nodes=(1,), devices=(1, 2), shares=TIGHT),  # hardly any room
    Taste(nodes=(1, 2), kinds=("", "cpus"), millicpus=(4_000,), shares=(5, 20), models=(5, 8)),  # cpus are short
    Taste(nodes=(1,), devices=(2, 4), counts=((1,), (2,), (2, 4)), kinds=("", "exclusive"), shares=TIGHT),
    Taste(nodes=(1,), devices=(1, 2), shares=TIGHT, models=(4, 7), cancels=0.5, struck=(3, 8)),  # fickle clients
    Taste(  # who is worth least
        nodes=(1,),
        devices=(1, 1, 2),
        shares=(25, 30, 45),
        models=(6, 8),
        kinds=("",),
        counts=((1,), (1, 2)),
        headroom_gib=(0, 4),
        patience_ms=(None,),
        policies=(1, 0, 0),
        peculiar=0.0,
        operated=(0,),
        changed=(0,),
        struck=(0, 2),
        load_ms=(100, 300, 1_000, 2_000),
    ),
    Taste(  # operators who cannot leave it alone
        nodes=(1,),
        devices=(1, 1, 2),
        shares=TIGHT,
        kinds=("",),
        counts=((1,), (1, 2)),
        patience_ms=(None, 1_000),
        operated=(20, 30),
        changed=(0, 2),
        struck=(0, 6),
        load_ms=(100, 1_000),
        unload_ms=(8_000,),
        queue_limit=(1_000,),
        durations_ms=(50, 500, 2_000),
    ),
    Taste(nodes=(1,), devices=(2, 4), shares=TIGHT, kinds=("",), peculiar=0.9, operated=(2, 5)),  # pins and minima
    Taste(nodes=(1, 2), shares=TIGHT, changed=(4, 8)),  # nodes flap, other programs come and go
    Taste(nodes=(1,), shares=TIGHT, kinds=("",), operated=(2,), struck=(25,)),  # a bad day
    Taste(  # sleepers
        nodes=(1, 1, 2),
        devices=(1, 1, 2),
        shares=(25, 45, 60, 95),
        models=(4, 6),
        kinds=("", "", "memory", "cpus"),
        counts=((1,), (1, 2)),
        patience_ms=(None, 1_000, 5_000),
        peculiar=0.2,
        struck=(4, 12),
        load_ms=(1_000, 4_000),
        asleep=0.9,
    ),
)
