"""An entry of `events:`: one instant, one verb, and for `request` how it is to be served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field, model_validator

from rayscheduler.config.fields import Duration, Flag, Name, Priority, Section, SizeOrZero
from rayscheduler.config.nodes import NodeSection
from rayscheduler.config.values import Wrong, one_of_these, shown
from rayscheduler.core.types import DeviceId, ModelName, NodeName, RequestId
from rayscheduler.simulation import scenario as sim

VERBS = (
    "request",
    "end",
    "cancel",
    "load",
    "unload",
    "pin",
    "unpin",
    "remove",
    "node_up",
    "node_down",
    "device_down",
    "observe",
    "load_fails",
    "crash",
    "shutdown",
)
_VERBS = frozenset(VERBS)
_OF_A_REQUEST = frozenset({"model", "duration", "priority", "tier", "deadline"})
_ABOUT_A_MODEL: Mapping[str, Callable[[ModelName], sim.Happening]] = {
    "load": sim.Load,
    "unload": sim.Unload,
    "pin": sim.Pin,
    "unpin": sim.Unpin,
    "remove": sim.Remove,
    "load_fails": sim.LoadFails,
    "crash": sim.Crash,
}


class ObserveSection(Section):
    """What programs that are not ours hold on a device from now on."""

    device: Name = Field(examples=["n1/0"])
    used_by_others: SizeOrZero = Field(examples=["30GiB"])


class EventSection(Section):
    """What happens at one instant."""

    at: Duration = Field(examples=["0s"])
    """When, counted from the start."""

    request: Name | None = Field(default=None, examples=["r1"])
    """A client asks for `model`; this names the request."""
    model: Name | None = Field(default=None, examples=["a"])
    """What the request asks for."""
    duration: Duration | None = None
    """Served this long once granted; if left out, until its `end`."""
    priority: Priority | None = None
    """Higher goes first; if left out, the tier's, else the model's."""
    tier: Name | None = None
    """A priority by its name in `scheduler.tiers`."""
    deadline: Duration | None = None
    """Rejected if not granted within this time."""

    end: Name | None = None
    """This request is done."""
    cancel: Name | None = None
    """The client of this request went away."""
    load: Name | None = None
    """The operator loads a model."""
    unload: Name | None = None
    """The operator unloads a model, serving or not."""
    pin: Name | None = None
    """The operator makes a model's replicas immovable."""
    unpin: Name | None = None
    """The operator lets them go again."""
    remove: Name | None = None
    """The operator takes a model out of the catalog."""
    node_up: NodeSection | None = None
    """A node joins."""
    node_down: Name | None = None
    """A node is gone, with all on it."""
    device_down: Name | None = None
    """A device is gone, with all on it."""
    observe: ObserveSection | None = None
    """Other programs hold this much of a device."""
    load_fails: Name | None = None
    """The next load of this model fails when it would be ready."""
    crash: Name | None = None
    """The model's replica with the lowest serial dies."""
    shutdown: Flag | None = None
    """All replicas stop; nothing is granted any more."""

    @model_validator(mode="after")
    def _one_verb(self) -> Any:
        said = self.model_fields_set
        verbs = said & _VERBS
        if not verbs:
            raise Wrong("says no verb", f"add one of {', '.join(VERBS)}, for example load: a")
        if len(verbs) > 1:
            first, second = sorted(verbs, key=VERBS.index)[:2]
            raise Wrong(f"says both {first} and {second}", "write one event for each", (second,))
        if "request" in said:
            if self.model is None:
                raise Wrong("the key 'model' is missing", "add for example model: a")
        elif said & _OF_A_REQUEST:
            key = min(said & _OF_A_REQUEST)
            raise Wrong(f"the key {key!r} belongs to request, not to {min(verbs)}", f"remove {key}", (key,))
        if self.shutdown is False:
            raise Wrong("a shutdown that is false is no event", "write shutdown: true, or remove it", ("shutdown",))
        return self

    def happening(self, tiers: Mapping[str, int], aliases: Mapping[str, str]) -> sim.Happening:
        """As the simulation has it: tiers have become priorities and aliases models. Wrong: an unknown tier."""
        if self.tier is not None and self.tier not in tiers:
            fix = one_of_these(self.tier, tiers, "tiers") if tiers else "add it to scheduler.tiers, or write priority"
            raise Wrong(f"there is no tier {shown(self.tier)}", fix, ("tier",))
        if self.request is not None and self.model is not None:
            return sim.Request(
                request=RequestId(self.request),
                model=ModelName(aliases.get(self.model, self.model)),
                duration_ms=self.duration,
                priority=self.priority if self.priority is not None or self.tier is None else tiers[self.tier],
                deadline_ms=self.deadline,
            )
        if self.end is not None:
            return sim.End(RequestId(self.end))
        if self.cancel is not None:
            return sim.Cancel(RequestId(self.cancel))
        if self.node_up is not None:
            return sim.NodeUp(self.node_up.to_node())
        if self.node_down is not None:
            return sim.NodeDown(NodeName(self.node_down))
        if self.device_down is not None:
            return sim.DeviceDown(DeviceId(self.device_down))
        if self.observe is not None:
            return sim.Observe(DeviceId(self.observe.device), self.observe.used_by_others)
        for verb, make in _ABOUT_A_MODEL.items():
            model = getattr(self, verb)
            if model is not None:
                return make(ModelName(aliases.get(model, model)))
        return sim.Shutdown()
