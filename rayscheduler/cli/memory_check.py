"""What `config check` says of memory: of models whose files can be read on this machine, nobody else is asked.

Rules of this file: the figures and the verdict are those of the allocator (`cluster/figures.py`); what it would
see on other machines is its own affair. A file that cannot be read here is no problem here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rayscheduler.cluster.drivers import gpus
from rayscheduler.cluster.figures import Figures, figures_of, parts_words
from rayscheduler.cluster.reports import SizeQuestion
from rayscheduler.cluster.sizing import size_up
from rayscheduler.config.service import ModelEntry, ServiceConfig
from rayscheduler.config.yaml_lines import load_file
from rayscheduler.core.types import Backend
from rayscheduler.core.words import sized
from rayscheduler.engines import EngineRequest
from rayscheduler.errors import ConfigError


@dataclass(frozen=True)
class Sized:
    """An entry of the catalog, by its place in the file, and what its files say."""

    index: int
    entry: ModelEntry
    figures: Figures

    @property
    def words(self) -> str:
        """What will be reserved for it, with the parts: one line."""
        told = []
        for count, figure in sorted(self.figures.by_count.items()):
            on = "on the host" if not count else "on one device" if count == 1 else f"on each of {count} devices"
            parts = f" ({parts_words(figure.estimate.parts_bytes)})" if figure.estimate is not None else ""
            told.append(f"{sized(figure.reserved_bytes)} {on}{parts}")
        return f"{self.entry.name}: memory is estimated: {', or '.join(told)}"


def sized_here(config: ServiceConfig) -> Iterator[Sized]:
    """The models whose files can be read here, in the order of the catalog."""
    for index, entry in enumerate(config.models):
        if entry.can_be_estimated and entry.source:
            answer = size_up(_question(entry))
            if not answer.problem:
                yield Sized(index, entry, figures_of(entry, [answer]))


def contradiction(config: ServiceConfig, model: Sized) -> ConfigError | None:
    """Why the allocator would refuse the model, with the line of what it says."""
    if not model.figures.refusal:
        return None
    key = "memory" if model.entry.memory is not None else "memory_per_device"
    line = load_file(config.path).line(("models", model.index, key))
    return ConfigError(config.path, line, model.figures.refusal, "")


def _question(entry: ModelEntry) -> SizeQuestion:
    """For the backend that it requires; else as if it ran on this machine."""
    backend = entry.requires.backend or (Backend.NVIDIA if gpus() else Backend.CPU)
    request = EngineRequest(**entry.engine_fields(), replica=f"{entry.name}#0", backend=backend.value)
    return SizeQuestion(entry.engine.value, request, tuple(entry.device_counts), backend is Backend.CPU)
