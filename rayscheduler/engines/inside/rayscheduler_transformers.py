"""Runs `transformers serve` for one model, under the model's own name, behind a key, within its memory.

Arguments: the model's name, its folder or hub id, and further options of `transformers serve`.

`transformers serve` answers only to the path that it was given and says it in its answers. So it is given
a path that is the name: a link in a folder of its own, in which it runs. It asks no key, so a guard
(rayscheduler_guard.py) stands before it. It knows no limit, so PyTorch's allocator is given one.

Rules of this file: see the folder's.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from typing import Any

FRACTIONS_ENV = "RAYSCHEDULER_DEVICE_FRACTIONS"  # of each visible device's memory, in order: `0.41,0.41`


def main() -> None:
    name, source, *options = sys.argv[1:]
    # uvicorn ends in order on SIGTERM and then sends it once more: so that the folder goes, too, it is an exit here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="rayscheduler-") as place:
        link = os.path.join(place, name)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(_folder(source), link)
        os.chdir(place)
        _limit_memory()
        _stand_guard()
        from transformers.cli.transformers import app  # type: ignore

        app(["serve", name, *options], prog_name="transformers")


def _folder(source: str) -> str:
    if os.path.isdir(source):
        return os.path.abspath(source)
    from huggingface_hub import snapshot_download  # type: ignore

    return str(snapshot_download(source))


def _limit_memory() -> None:
    """Beyond its share of a device an allocation fails, as if the device were full."""
    fractions = os.environ.get(FRACTIONS_ENV, "")
    if not fractions:
        return
    import torch  # type: ignore

    for index, fraction in enumerate(fractions.split(",")):
        torch.cuda.set_per_process_memory_fraction(float(fraction), index)


def _stand_guard() -> None:
    import uvicorn
    from rayscheduler_guard import Guard  # type: ignore

    plain_config: Any = uvicorn.Config

    def guarded_config(app: Any, *args: Any, **kwargs: Any) -> Any:
        return plain_config(Guard(app), *args, **kwargs)

    uvicorn.Config = guarded_config  # type: ignore


if __name__ == "__main__":
    main()
