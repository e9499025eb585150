"""Elastic models: planned by what they need, given what is free where they go, up to what they can use.

Rules of this file: it reads the ledger. Nobody is evicted for more than a model needs, so a plan is made first and
sized afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rayscheduler.core.fit import Freed
from rayscheduler.core.ledger import Ledger
from rayscheduler.core.types import Placement, Requirement


def grown(
    ledger: Ledger, want: Requirement, placement: Placement, gone: Sequence[Placement], kept: Sequence[Placement]
) -> Placement:
    """`placement` with the vector of an elastic model: on each device as many bytes as are free on the fullest of
    them, once `gone` are gone but for what those of them that sleep keep (`kept`); no less than it needs, no more
    than it can use. Of a model that is not elastic, `placement` itself."""
    most = want.bytes_max_by_count.get(len(placement.devices), 0)
    if not placement.devices or most <= placement.device_bytes[0] or want.exclusive:
        return placement
    each = most
    for name in placement.nodes:
        account = ledger.accounts[name]
        free, freed, stays = account.room().free, Freed(account, gone), Freed(account, kept)
        # Where the device is the host's memory, both are charged to it; nobody sleeps there.
        host = freed.host - placement.host_bytes if account.node.device_is_host_memory else 0
        taken = [account.index[device] for device in placement.devices if device in account.index]
        each = min(each, *(free[at] + freed.sizes[at] - stays.sizes[at] + host for at in taken))
    each = max(each, placement.device_bytes[0])
    return replace(placement, device_bytes=(each,) * len(placement.devices))
