"""The LoRA adapters of a model, as its engine has to know of them when it starts: how many, and of what size.

Rules of this file: of an adapter its `adapter_config.json` is read, where it is on this machine; what it says is the
least that the engine must be told. An adapter that cannot be read is no reason not to serve its base: whoever asks
for it is told by the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.engines.sources import hub_entry
from rayscheduler.errors import EngineError

CONFIG_FILE = "adapter_config.json"
RANK_DEFAULT = 16  # vLLM's own, where no adapter can be read
LORA_HINT = "give each adapter as a model of its own, with `base`"


def highest_rank(request: EngineRequest) -> int:
    """The rank that adapters may have: the stated one, or the highest that is read. EngineError: it is too low."""
    ranks = {source: _rank(config) for source, config in _configs(request).items()}
    highest = max(ranks, key=lambda source: ranks[source], default=None)
    if request.max_lora_rank is None:
        return ranks[highest] if highest is not None and ranks[highest] else RANK_DEFAULT
    if highest is not None and ranks[highest] > request.max_lora_rank:
        raise EngineError(
            f"model {request.model} has max_lora_rank {request.max_lora_rank}, but its adapter {highest} has rank "
            f"{ranks[highest]}; raise it, or leave it out"
        )
    return request.max_lora_rank


def target_modules(request: EngineRequest) -> tuple[str, ...]:
    """The modules that any of its adapters changes, in the words of their files; () where one does not say it."""
    configs = _configs(request)
    named: set[str] = set()
    for source in request.adapters:
        modules = configs.get(source, {}).get("target_modules")
        if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
            return ()
        named |= {module.rpartition(".")[2] for module in modules}
    return tuple(sorted(named))


def adapter_mounts(request: EngineRequest) -> tuple[str, ...]:
    """What a container must see of this machine's files to find the adapters."""
    environment = {**os.environ, **request.env}
    places = [
        source if os.path.isabs(source) else str(hub_entry(source, environment)) for source in request.adapters
    ]
    return tuple(place for place in places if os.path.isdir(place))


def _rank(config: Mapping[str, Any]) -> int:
    """The highest of it, as modules may have their own; 0 where it says none."""
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((rank for rank in ranks if isinstance(rank, int)), default=0)


def _configs(request: EngineRequest) -> dict[str, Mapping[str, Any]]:
    """By source, of the adapters that are on this machine."""
    environment = {**os.environ, **request.env}
    found: dict[str, Mapping[str, Any]] = {}
    for source in request.adapters:
        try:
            config = json.loads(_config_file(source, environment).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            found[source] = config
    return found


def _config_file(source: str, environment: Mapping[str, str]) -> Path:
    if os.path.isabs(source):
        return Path(source) / CONFIG_FILE
    snapshots = (hub_entry(source, environment) / "snapshots").glob(f"*/{CONFIG_FILE}")
    return max(snapshots, key=lambda path: (path.stat().st_mtime, str(path)), default=Path(CONFIG_FILE))
