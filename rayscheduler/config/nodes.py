"""An entry of `nodes:` (and of `node_up`): one machine of a scenario and the devices it lends."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rayscheduler.config import units
from rayscheduler.config.fields import SIZE_SCHEMA, Drawn, Millicpus, Name, Section, Size, Text
from rayscheduler.config.models import BackendWord
from rayscheduler.config.values import Wrong, shown
from rayscheduler.core.types import Backend, Device, DeviceId, Node, NodeName

DEVICES_MAX = 1024
_REPEATED = re.compile(r"([0-9]{1,9})x(.*)", re.DOTALL)


class DeviceSection(Section):
    """One device, where a size alone does not say enough. `type` left out is the node's."""

    memory: Size = Field(examples=["80GiB"])
    type: Text | None = None


def _device(value: object) -> object:
    """A device written as its size alone."""
    if isinstance(value, (dict, DeviceSection)):
        return value
    return {"memory": units.size_bytes(value)}


def _devices(value: object) -> object:
    """`2x80GiB` written out."""
    if not isinstance(value, str):
        return value
    repeated = _REPEATED.fullmatch(value)
    if repeated is None:
        raise Wrong(f"{shown(value)} is not a list of devices", "write for example 2x80GiB or [80GiB, 80GiB]")
    count = int(repeated.group(1))
    if not 1 <= count <= DEVICES_MAX:
        raise Wrong(f"{count} devices is out of range", f"write a count from 1 to {DEVICES_MAX}, for example 2x80GiB")
    try:
        size = units.size_bytes(repeated.group(2))
    except Wrong as wrong:
        raise Wrong(wrong.what, f"write for example {count}x{units.likely_size(repeated.group(2))}") from None
    return [{"memory": size}] * count


_DEVICE_SCHEMA = {
    "anyOf": [
        SIZE_SCHEMA,
        {
            "type": "object",
            "properties": {"memory": SIZE_SCHEMA, "type": {"type": "string"}},
            "required": ["memory"],
            "additionalProperties": False,
        },
    ]
}
_REPEATED_SIZE = "^[0-9]+x" + str(SIZE_SCHEMA["pattern"]).lstrip("^")
DeviceItem = Annotated[DeviceSection, BeforeValidator(_device)]
Devices = Annotated[
    list[DeviceItem],
    BeforeValidator(_devices),
    Drawn({"anyOf": [{"type": "string", "pattern": _REPEATED_SIZE}, {"type": "array", "items": _DEVICE_SCHEMA}]}),
]


class NodeSection(Section):
    """One machine."""

    name: Name = Field(examples=["n1"])
    backend: BackendWord = Field(examples=["nvidia"])
    type: Text | None = Field(default=None, examples=["H100"])
    """Type of its devices."""
    devices: Devices | None = Field(default=None, examples=["2x80GiB"])
    """Sizes of its devices: a list, or `2x80GiB`. A cpu node without devices lends its memory as one."""
    cpus: Millicpus | None = None
    """Unlimited if left out."""
    memory: Size | None = None
    """Host memory; unlimited if left out."""
    labels: dict[Name, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_devices(self) -> Any:
        if self.backend is not Backend.CPU and not self.devices:
            what = f"node {shown(self.name)} has no devices, but its backend is {self.backend}"
            fix = "write for example devices: 2x80GiB, or backend: cpu"
            raise Wrong(what, fix, () if self.devices is None else ("devices",))
        return self

    def to_node(self) -> Node:
        """As the core has it. A cpu node without devices lends its memory as one device."""
        lent = [(device.memory, device.type or self.type or "") for device in self.devices or ()]
        is_host_memory = not lent and self.memory is not None
        if not lent and self.memory is not None:
            lent = [(self.memory, self.type or "")]
        devices = tuple(
            Device(DeviceId(f"{self.name}/{index}"), capacity_bytes, type=device_type)
            for index, (capacity_bytes, device_type) in enumerate(lent)
        )
        return Node(
            name=NodeName(self.name),
            backend=self.backend,
            devices=devices,
            millicpus=self.cpus,
            memory_bytes=self.memory,
            labels=dict(self.labels),
            device_is_host_memory=is_host_memory,
        )
