"""Where a model in the format of the Hugging Face hub is on this machine: a folder, or the hub's cache.

    ./models/llama            a folder that is there
    org/name                  $HF_HUB_CACHE or $HF_HOME/hub / models--org--name / snapshots / REVISION

Rules of this file: it looks, and downloads nothing. A hub id that is not in the cache is for the engine
to download, so it is no error here; what needs the files says that it does not have them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rayscheduler.engines.protocol import EngineRequest
from rayscheduler.errors import SourceError

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_source(request: EngineRequest) -> str:
    """Where the model is: an absolute path, or a hub id. SourceError: it is neither."""
    source = request.source
    if not source:
        raise SourceError(
            f"model {request.model} has no source; give the path of its folder, or its id on the hub, as `source`"
        )
    path = os.path.expanduser(source)
    if os.path.isabs(path) or source.startswith("."):
        return os.path.abspath(path)
    if _HUB_ID.fullmatch(source) is None:
        raise SourceError(f"model {request.model}: {source!r} is neither a path nor an id on the hub, such as org/name")
    return source


def model_folder(request: EngineRequest, environment: Mapping[str, str]) -> str | None:
    """The folder with the model's files; None: a hub id that is not on this machine.

    SourceError: the source is a path where no such folder is.
    """
    source = model_source(request)
    if not os.path.isabs(source):
        return _snapshot(hub_entry(source, environment))
    told = f"model {request.model}: {source}"
    if os.path.isfile(source):
        raise SourceError(f"{told} is a file; give the folder that holds {CONFIG_FILE} and the weights")
    if not os.path.isdir(source):
        raise SourceError(f"{told} does not exist; give the path of a folder on this machine, or an id on the hub")
    if not os.path.isfile(os.path.join(source, CONFIG_FILE)):
        raise SourceError(f"{told} holds no {CONFIG_FILE}, so it is no model; give the folder of a whole model")
    return source


def engine_source(request: EngineRequest) -> str:
    """What the engine is told. In a container, which has no cache, a model of the hub's cache is its folder."""
    source = model_source(request)
    if not request.container_image or os.path.isabs(source):
        return source
    return _snapshot(hub_entry(source, {**os.environ, **request.env})) or source


def model_mounts(request: EngineRequest) -> tuple[str, ...]:
    """What a container must see of this machine's files to find the model; () if it has to download it."""
    source = model_source(request)
    if os.path.isabs(source):
        return (source,)
    # The whole entry: the files of a snapshot are links to its blobs.
    entry = hub_entry(source, {**os.environ, **request.env})
    return (str(entry),) if _snapshot(entry) else ()


def hub_entry(hub_id: str, environment: Mapping[str, str]) -> Path:
    """Where the hub's cache has all that it has of a model, whether it has any or not."""
    home = environment.get("HF_HOME") or os.path.join(
        environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = environment.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expanduser(cache)) / ("models--" + hub_id.replace("/", "--"))


def _snapshot(entry: Path) -> str | None:
    """The files of `main`, or of the newest revision that is whole enough to have a config."""
    try:
        revision = (entry / "refs" / "main").read_text().strip()
    except OSError:
        revision = ""
    snapshots = sorted(
        (path for path in (entry / "snapshots").glob("*") if (path / CONFIG_FILE).is_file()),
        key=lambda path: (path.name == revision, path.stat().st_mtime, path.name),
    )
    return str(snapshots[-1]) if snapshots else None
