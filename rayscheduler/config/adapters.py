"""LoRA adapters in the section `models:`: entries that say `base`, of which another entry is the model.

    - {name: llama-8b, engine: vllm, source: meta-llama/Llama-3.1-8B, memory: 40GiB}
    - {name: support-bot, base: llama-8b, source: ./adapters/support-bot}

Rules of this file: an adapter has a name and files, and nothing of its own beside them: it is loaded into the
replicas of its base, so memory, placement and engine are said there. Whoever schedules sees requests for the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from rayscheduler.config.fields import ModelText, Section, Text
from rayscheduler.config.models import ModelSection, SchedulerSection
from rayscheduler.config.values import Path, Wrong, one_of_these, shown
from rayscheduler.config.yaml_lines import ADAPTER_STEP, MODEL_STEP, Document
from rayscheduler.core.types import PolicyName

ADAPTERS_DEFAULT_MAX = 8  # in one replica, where the base does not say how many
# engine -> why it cannot, and what can be done
CANNOT: Mapping[str, tuple[str, str]] = {
    "llama-cpp": (
        "llama-cpp takes adapters only when it starts, and by a field of each request",
        "merge it into the GGUF file with llama-export-lora, or use engine: vllm or sglang",
    ),
    "ollama": ("ollama has adapters in its own models", "make one with ADAPTER in a Modelfile and `ollama create`"),
    "transformers": ("transformers loads no adapter while it runs", "use engine: vllm or sglang"),
    "command": ("nobody knows how a command loads adapters", "use engine: vllm or sglang"),
}


class AdapterSection(Section):
    """A LoRA adapter of another model, loaded into that model's replicas when it is asked for."""

    name: ModelText = Field(examples=["support-bot"])
    """What requests call it."""
    aliases: list[ModelText] = Field(default_factory=list)
    """Other names that requests may use."""
    base: ModelText = Field(examples=["llama-8b"])
    """The model that it adapts."""
    source: Text | None = Field(default=None, examples=["./adapters/support-bot"])
    """The adapter's folder, relative to this file if it starts with a dot, or its id on the hub."""

    @property
    def loaded_from(self) -> str:
        """What the engine is told: its files, or its name where a base only pretends to load them."""
        return self.source or self.name

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_a_model(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key in ModelSection.model_fields and key not in cls.model_fields:
                    what = f"an adapter is loaded into the replicas of its base, which has its own {key}"
                    raise Wrong(what, f"remove it, or write it at {shown(data['base'])}", (key,))
        return data


def _step(entry: object) -> str:
    """Which of the two an entry is, as a step that pydantic puts into the paths of its errors."""
    is_adapter = isinstance(entry, AdapterSection) or (isinstance(entry, dict) and "base" in entry)
    return ADAPTER_STEP if is_adapter else MODEL_STEP


M = TypeVar("M", bound=ModelSection)
ModelOrAdapter = Annotated[
    Annotated[M, Tag(MODEL_STEP)] | Annotated[AdapterSection, Tag(ADAPTER_STEP)], Discriminator(_step)
]


def models_among(entries: Sequence[M | AdapterSection]) -> list[M]:
    return [entry for entry in entries if not isinstance(entry, AdapterSection)]


def adapters_among(entries: Sequence[M | AdapterSection]) -> list[AdapterSection]:
    return [entry for entry in entries if isinstance(entry, AdapterSection)]


def check_adapters(
    document: Document, scheduler: SchedulerSection, entries: Sequence[ModelSection | AdapterSection]
) -> None:
    """ConfigError for an adapter whose base is not there, is an adapter, or is served by an engine without them."""
    adapters = {adapter.name: adapter for adapter in adapters_among(entries)}
    models = {model.name: model for model in models_among(entries)}
    for index, entry in enumerate(entries):
        if isinstance(entry, AdapterSection):
            try:
                _check_base(entry, models, adapters)
            except Wrong as wrong:
                raise document.wrong(("models", index, *wrong.at), wrong.what, wrong.fix) from None
    if scheduler.policy is PolicyName.GROUPS:
        for group, section in scheduler.groups.items():
            for position, member in enumerate(section.members):
                if member in adapters:
                    path: Path = ("scheduler", "groups", group, "members", position)
                    what = f"{shown(member)} is an adapter, which is where its base is"
                    raise document.wrong(path, what, f"write its base, {adapters[member].base}")


def _check_base(
    adapter: AdapterSection, models: Mapping[str, ModelSection], adapters: Mapping[str, AdapterSection]
) -> None:
    told, at = shown(adapter.base), ("base",)
    if adapter.base in adapters:
        further = adapters[adapter.base].base
        raise Wrong(f"{told} is an adapter itself", f"name the model, for example base: {further}", at)
    base = models.get(adapter.base)
    if base is None:
        owner = next((model.name for model in models.values() if adapter.base in model.aliases), None)
        if owner is not None:
            raise Wrong(f"{told} is an alias", f"write the name, base: {owner}", at)
        raise Wrong(f"there is no model {told}", one_of_these(adapter.base, models, "models"), at)
    if base.engine is not None and base.engine.value in CANNOT:
        why, instead = CANNOT[base.engine.value]
        raise Wrong(f"the base {told} cannot have adapters: {why}", instead, at)
