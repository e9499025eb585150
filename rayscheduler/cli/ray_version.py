"""Is Ray here, and one that this package knows: asked before Ray is imported, which takes a second."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from rayscheduler.errors import VersionMismatch

OLDEST = (2, 60)


def require_ray() -> None:
    """Raises VersionMismatch, saying what to install, where Ray is missing or older than `OLDEST`."""
    oldest = ".".join(map(str, OLDEST))
    install = f"run: pip install 'ray[serve]>={oldest}'"
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise VersionMismatch(f"Ray is not installed in this Python; {install}") from None
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        raise VersionMismatch(f"this Python has Ray {found}, and {oldest} or newer is needed; {install}")
