"""The file that `rayscheduler up` reads: how to schedule, and the catalog of models with their engines.

Rules of this file: an entry is a scenario's model and what its engine needs; what only the machine that
runs the engine can know (is the file there? is the program installed?) is not asked here. A config
written with `to_json` reads back as itself, also where the file is not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from rayscheduler.config.adapters import (
    ADAPTERS_DEFAULT_MAX,
    AdapterSection,
    ModelOrAdapter,
    adapters_among,
    models_among,
)
from rayscheduler.config.cross_checks import check_catalog
from rayscheduler.config.fields import Count, CountOrZero, Name, Section, Size
from rayscheduler.config.limits import LimitsSection
from rayscheduler.config.models import (
    EngineName,
    EngineWord,
    ModelSection,
    SchedulerSection,
)
from rayscheduler.config.values import Wrong, shown
from rayscheduler.config.yaml_lines import Document, load_file, load_text
from rayscheduler.core.types import Model, Settings

# Engines batch: four requests at a time cost little more than one. Scenarios count every lease and say 1.
CONCURRENCY = 4
HUB_ENGINES = (EngineName.VLLM, EngineName.SGLANG, EngineName.TRANSFORMERS)
_GPU_ENGINES = (EngineName.VLLM, EngineName.SGLANG)
# What only some engines know; said to another it would be ignored.
ONLY_FOR: Mapping[str, tuple[EngineName, ...]] = {
    "pipeline": _GPU_ENGINES,
    "kv_cache": _GPU_ENGINES,
    "kv_type": (*_GPU_ENGINES, EngineName.LLAMA_CPP),
    "max_batched_tokens": (*_GPU_ENGINES, EngineName.LLAMA_CPP),
    "max_loras": (*_GPU_ENGINES, EngineName.SIMULATED),
    "max_lora_rank": (*_GPU_ENGINES, EngineName.SIMULATED),
}
# Whose models lie in files that say what they will take.
ESTIMATED = (EngineName.LLAMA_CPP, *HUB_ENGINES)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ModelEntry(ModelSection):
    """A model of the real catalog."""

    engine: EngineWord = Field(examples=["llama-cpp"])
    concurrency: Count = CONCURRENCY
    _adapters: tuple[str, ...] = PrivateAttr(default=())  # the sources of those whose base it is

    @property
    def can_be_estimated(self) -> bool:
        return self.engine in ESTIMATED

    @property
    def load_timeout_ms(self) -> int:
        return self.load_timeout

    @property
    def kind(self) -> str:
        """What clients may ask it for: `chat` (and plain completions) or `embedding`."""
        return "embedding" if self.embedding else "chat"

    def with_adapters(self, sources: Sequence[str]) -> ModelEntry:
        """The same, which knows what its adapters are made of."""
        entry = self.model_copy()
        entry._adapters = tuple(sources)
        return entry

    def simulate_options(self) -> dict[str, object]:
        """What the `simulated` engine is told, by the names of the file; times in milliseconds, sizes in bytes."""
        section = self.simulate
        options: dict[str, object] = {
            "load": section.load,
            "unload": section.unload,
            "sleep": section.sleep,
            "wake": section.wake,
            "tokens_per_second": section.tokens_per_second,
            "reply": section.reply,
            "fail": section.fail.value,
            "fail_after": section.fail_after,
            "fail_status": section.fail_status,
            "allocate": section.allocate,
        }
        return {key: value for key, value in options.items() if value is not None}

    def engine_fields(self) -> dict[str, Any]:
        """The fields of an `EngineRequest` that the catalog decides; the rest (devices, ids) is the placement's."""
        return {
            "model": self.name,
            "source": self.source,
            "daemon": self.daemon,
            "args": tuple(self.args),
            "env": dict(self.env),
            "context_length": self.context_length,
            "concurrency": self.concurrency,
            "embedding": self.embedding,
            "ready_path": self.ready_path,
            "load_timeout_ms": self.load_timeout,
            "simulate": self.simulate_options() if self.engine is EngineName.SIMULATED else {},
            "pipeline": self.pipeline,
            "max_batched_tokens": self.max_batched_tokens,
            "kv_type": self.kv_type,
            "kv_cache_bytes": self.kv_cache,
            "python": self.python,
            "runtime_env": dict(self.runtime_env),
            "adapters": self._adapters,
            "max_loras": self.max_loras or min(len(self._adapters), ADAPTERS_DEFAULT_MAX),
            "max_lora_rank": self.max_lora_rank,
            **(self.container.engine_fields() if self.container is not None else {}),
        }

    @model_validator(mode="after")
    def _can_run(self) -> Any:
        if self.engine is EngineName.LLAMA_CPP and not self.source:
            raise Wrong(f"{shown(self.name)} has no source", "add the path of its GGUF file, source: model.gguf")
        if self.engine in HUB_ENGINES and not self.source:
            what = f"{shown(self.name)} has no source"
            raise Wrong(what, "add the folder of the model, source: ./model, or its id on the hub, source: org/model")
        for key, engines in ONLY_FOR.items():
            if key in self.model_fields_set and self.engine not in engines:
                what = f"is for {', '.join(engines)}, and the engine {self.engine} would not heed it"
                raise Wrong(what, "remove it", (key,))
        if self.engine is EngineName.OLLAMA and not self.source:
            raise Wrong(f"{shown(self.name)} has no source", "add its name in `ollama list`, source: llama3.2:3b")
        if self.daemon is not None and self.engine is not EngineName.OLLAMA:
            what = f"the engine {self.engine.value} uses no daemon"
            raise Wrong(what, "remove it, or use engine: ollama", ("daemon",))
        if self.engine is EngineName.COMMAND and not self.args:
            what = f"{shown(self.name)} has no args, the command that serves it"
            raise Wrong(what, "add for example args: [vllm, serve, org/model, --port, '${PORT}']")
        if not self.ready_path.startswith("/"):
            fix = "write a path of the engine's server, for example /health"
            raise Wrong(f"{shown(self.ready_path)} does not start with /", fix, ("ready_path",))
        if self.load_timeout == 0:
            raise Wrong("gives a load no time at all", "write for example 5m", ("load_timeout",))
        for key in self.env:
            if not _VARIABLE.fullmatch(key):
                what = f"{shown(key)} is not the name of an environment variable"
                raise Wrong(what, "write letters, digits and _, for example OMP_NUM_THREADS", ("env", key))
        return self


class EventLogSection(Section):
    """Where the allocator writes every event and decision, for `replay` and `simulate --trace`."""

    path: Name = Field(examples=["/var/log/rayscheduler/events.jsonl"])
    file_size: Size = 64 * 2**20
    keep: CountOrZero = 8  # older files beside it


class AuditLogSection(Section):
    """Where the allocator writes who changed what by hand: loads, pins, keys, the service file."""

    path: Name = Field(examples=["/var/log/rayscheduler/audit.jsonl"])
    file_size: Size = 64 * 2**20
    keep: CountOrZero = 8  # older files beside it


class ServiceFile(Section):
    """What is served and how."""

    scheduler: SchedulerSection = SchedulerSection()
    limits: LimitsSection = LimitsSection()
    event_log: EventLogSection | None = None
    audit_log: AuditLogSection | None = None
    models: list[ModelOrAdapter[ModelEntry]] = Field(
        examples=["[{name: a, engine: llama-cpp, source: a.gguf, memory: 2GiB}]"],
    )


@dataclass(frozen=True)
class ServiceConfig:
    """A service file that has been checked. `path`: where it was, for messages; `lines`: of its models.
    `adapters`: LoRA adapters of models."""

    scheduler: SchedulerSection
    models: list[ModelEntry]
    path: str
    lines: tuple[int, ...] = ()
    event_log: EventLogSection | None = None
    audit_log: AuditLogSection | None = None
    limits: LimitsSection = field(default_factory=LimitsSection)
    adapters: tuple[AdapterSection, ...] = ()

    def line_of(self, index: int) -> int | None:
        """The line on which `models[index]` starts."""
        return self.lines[index] if index < len(self.lines) else None

    def settings(self) -> Settings:
        """The core's settings."""
        return self.scheduler.settings()

    def core_models(self) -> tuple[Model, ...]:
        """The catalog as the core has it, in the order of the file."""
        return tuple(entry.to_model() for entry in self.models)

    @property
    def aliases(self) -> Mapping[str, str]:
        """The model, or adapter, of each alias."""
        return {alias: entry.name for entry in self.entries for alias in entry.aliases}

    @property
    def entries(self) -> list[ModelEntry | AdapterSection]:
        """All that requests may ask for."""
        return [*self.models, *self.adapters]

    def to_json(self) -> str:
        """A text that `config_from_json` reads, on any machine."""
        return json.dumps(
            {
                "scheduler": self.scheduler.model_dump(mode="json", exclude_unset=True),
                "models": [entry.model_dump(mode="json", exclude_unset=True) for entry in self.entries],
                "limits": self.limits.model_dump(mode="json", exclude_unset=True),
                **({"event_log": self.event_log.model_dump(mode="json")} if self.event_log else {}),
                **({"audit_log": self.audit_log.model_dump(mode="json")} if self.audit_log else {}),
            }
        )


def load_config(path: str | os.PathLike[str]) -> ServiceConfig:
    """The config in a file; ConfigError on anything wrong. Relative sources become absolute."""
    file = os.fspath(path)
    return _config(load_file(file), os.path.dirname(os.path.abspath(file)))


def config_from_text(text: str, file: str = "<config>", folder: str = ".") -> ServiceConfig:
    """The config in a text; `file` is what errors call it, relative sources start at `folder`."""
    return _config(load_text(text, file), os.path.abspath(folder))


def config_from_json(text: str, file: str = "<stored config>") -> ServiceConfig:
    """What `ServiceConfig.to_json` wrote: its sources are absolute already."""
    return _config(load_text(text, file), None)


def _config(document: Document, folder: str | None) -> ServiceConfig:
    file = document.parse(ServiceFile)
    check_catalog(document, file.scheduler, file.models)
    models, adapters = models_among(file.models), adapters_among(file.models)
    _check_sources(document, file.models)
    lines = tuple(
        document.line(("models", index))
        for index, entry in enumerate(file.models)
        if not isinstance(entry, AdapterSection)
    )
    if folder is not None:
        models = [_with_absolute_paths(entry, folder) for entry in models]
        adapters = [_with_absolute_source(adapter, folder) for adapter in adapters]
    sources: dict[str, list[str]] = {}
    for adapter in adapters:
        sources.setdefault(adapter.base, []).append(adapter.loaded_from)
    models = [entry.with_adapters(sources.get(entry.name, ())) for entry in models]
    return ServiceConfig(
        file.scheduler,
        models,
        document.file,
        lines,
        file.event_log,
        audit_log=file.audit_log,
        limits=file.limits,
        adapters=tuple(adapters),
    )


def _check_sources(document: Document, entries: Sequence[ModelEntry | AdapterSection]) -> None:
    """ConfigError for an adapter without files, unless its base only pretends to load them."""
    pretend = {entry.name for entry in models_among(entries) if entry.engine is EngineName.SIMULATED}
    for index, entry in enumerate(entries):
        if isinstance(entry, AdapterSection) and not entry.source and entry.base not in pretend:
            what = f"{shown(entry.name)} has no source"
            fix = "add the adapter's folder, source: ./adapter, or its id on the hub, source: org/adapter"
            raise document.wrong(("models", index), what, fix)


def _with_absolute_source(adapter: AdapterSection, folder: str) -> AdapterSection:
    source = adapter.source or ""
    if not source.startswith(("./", "../")):
        return adapter
    return adapter.model_copy(update={"source": os.path.normpath(os.path.join(folder, source))})


def _with_absolute_paths(entry: ModelEntry, folder: str) -> ModelEntry:
    """What is relative to the file. A llama-cpp source is a path; another's may be a name, unless it says `./`."""
    changed: dict[str, str] = {}
    source, python = entry.source, entry.python
    is_path = entry.engine is EngineName.LLAMA_CPP or (source or "").startswith(("./", "../"))
    if source and is_path and not source.startswith("~") and "://" not in source:
        changed["source"] = os.path.normpath(os.path.join(folder, source))
    if python and not python.startswith("~"):
        changed["python"] = os.path.normpath(os.path.join(folder, python))
    return entry.model_copy(update=changed) if changed else entry


__all__ = [
    "AdapterSection",
    "ModelEntry",
    "ServiceConfig",
    "ServiceFile",
    "config_from_json",
    "config_from_text",
    "load_config",
]
