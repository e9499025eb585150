"""The catalog: the models of the service file, by every name they have, and as the core and a runner need them.

Rules of this file: pure. A model of any engine but `simulated` needs real devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rayscheduler.cluster.inventory import NodeInventory
from rayscheduler.cluster.names import DEVICES_LABEL, REAL
from rayscheduler.cluster.placement_groups import MIB, bytes_on
from rayscheduler.cluster.reports import Launch
from rayscheduler.config.adapters import AdapterSection
from rayscheduler.config.models import EngineName
from rayscheduler.config.service import ModelEntry, ServiceConfig
from rayscheduler.core.types import Model, ModelName, Placement, ReplicaId
from rayscheduler.engines import EngineRequest

STOP_GRACE_S = 10.0


class Catalog:
    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._entries: dict[str, ModelEntry] = {entry.name: entry for entry in config.models}
        self._adapters = {adapter.name: adapter for adapter in config.adapters}
        self._names = {**{name: name for name in (*self._entries, *self._adapters)}, **config.aliases}

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._entries.values())

    def resolve(self, name: str) -> ModelName:
        """The model of a name or alias, of an adapter its base; a name that nobody knows is left as it is."""
        adapter = self.adapter(name)
        return ModelName(self._names.get(name, name) if adapter is None else adapter.base)

    def adapter(self, name: str) -> AdapterSection | None:
        """The adapter of a name or alias; None: it is none."""
        return self._adapters.get(self._names.get(name, name))

    def entry(self, name: str) -> ModelEntry | None:
        return self._entries.get(name)

    def launch(
        self,
        replica: ReplicaId,
        model: ModelName,
        placement: Placement,
        nodes: Sequence[NodeInventory],
        memory_key: str = "",
        spare_bytes: int = 0,
    ) -> Launch:
        """What the runner of a replica is told. `nodes`: what each node of the placement lends, in its order.
        `spare_bytes`: what is reserved on each device and the engine must not plan with."""
        entry = self._entries[model]
        requests = []
        for rank, (name, node) in enumerate(zip(placement.nodes, nodes, strict=True)):
            taken = bytes_on(placement, name)
            request = EngineRequest(
                **entry.engine_fields(),
                replica=replica,
                device_bytes=tuple(max(1, size - spare_bytes) for size in taken.values()),
                device_capacity_bytes=_capacities(taken, node),
                visible_devices=_visible_devices(taken, node),
                backend=node.backend.value,
                node_count=len(placement.nodes),
                node_rank=rank,
            )
            requests.append(request)
        first, *further = requests
        return Launch(replica, model, placement, entry.engine.value, first, STOP_GRACE_S, tuple(further), memory_key)


def core_model(entry: ModelEntry, bytes_by_count: Mapping[int, int]) -> Model:
    """As the core has it. `bytes_by_count`: what is believed that it takes. No engine here can be told to sleep yet."""
    model = replace(entry.to_model(), sleep=None)
    labels = dict(model.requirement.labels)
    if entry.engine is not EngineName.SIMULATED:
        labels[DEVICES_LABEL] = REAL
    return replace(model, requirement=replace(model.requirement, bytes_by_count=dict(bytes_by_count), labels=labels))


def _capacities(indices: Iterable[int], node: NodeInventory) -> tuple[int, ...]:
    """All that each device has, lent or not: engines count in parts of it."""
    whole = {device.index: (device.whole_mib or device.lent_mib) * MIB for device in node.devices}
    here = list(indices)
    return tuple(whole[index] for index in here) if all(index in whole for index in here) else ()


def _visible_devices(indices: Iterable[int], node: NodeInventory) -> tuple[str, ...]:
    """The UUIDs of the GPUs that an engine may see; the RAM of a node and pretended GPUs have none."""
    if node.simulated or node.kind == "cpu":
        return ()
    uuids = {device.index: device.uuid for device in node.devices}
    return tuple(uuids[index] for index in indices)
