"""The executor: the only caller of Serve. It starts and deletes runners' applications and sees them gone.

    start:  one `serve.run_many` for all that is to be started at once; does not wait for them
    hold:   for one that can sleep, a placement group of its devices' bytes beside its runner's: before it starts,
            when it has gone to sleep, and before it wakes. The one before it is removed, then look until it is there
    stop:   `serve.delete` without waiting; once the engine is gone, its placement group is removed. Then
            look, from every 10 ms up, until Ray holds none for it; where a runner may have been restarted
            in place, until Serve has forgotten it, too, or surely does nothing for it any more.

Rules of this file: Serve's calls block, so all of this happens in one thread of its own, in the order of the
orders. It remembers only what is still leaving. What it finds out it tells by `Heard`, on that thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from rayscheduler.cluster.agreement import HeldGroup, held_groups, make_group, remove_group
from rayscheduler.cluster.names import RUNNER_DEPLOYMENT, app_name, device_group_name, replica_of_app
from rayscheduler.cluster.placement_groups import Bundle, serve_options
from rayscheduler.cluster.reports import Launch, Turn
from rayscheduler.cluster.runner import Runner
from rayscheduler.cluster.store import Store
from rayscheduler.core.types import ReplicaId

FIRST_LOOK_S, LOOK_PAUSE_MAX_S = 0.010, 0.250
FORCE_AFTER_S = 1.5  # for Serve to end a runner that it may just be restarting; it needs a fifth of that
SETTLED_AFTER_S = 3.0  # thirty rounds of Serve's control loop
DELETE_AGAIN_S = 10.0  # a Serve controller that was restarting may have lost it
TRIES_S = 15.0  # for as long Serve's controller may be restarting
HOLD_WITHIN_S = 60.0  # what is to be held is free, says the ledger; Ray needs some milliseconds

GIVEN_UP = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)

logger = logging.getLogger(__name__)


class Heard(Protocol):
    """Called in the executor's thread."""

    def start_failed(self, replica: ReplicaId, detail: str) -> None: ...

    def group_gone(self, replica: ReplicaId) -> None: ...

    def devices_held(self, replica: ReplicaId, turn: Turn | None) -> None: ...

    def hold_failed(self, replica: ReplicaId, detail: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Hold:
    """Have Ray hold this of its devices for a replica that can sleep, and nothing else. `turn`: what that is for,
    if it is not for its load."""

    replica: ReplicaId
    bundle: Bundle
    turn: Turn | None = None

    @property
    def name(self) -> str:
        asleep = self.turn is not None and self.turn.asleep
        return device_group_name(self.replica, f"asleep-{self.turn.nap}" if self.turn and asleep else "awake")


@dataclass(frozen=True, slots=True)
class Start:
    """`bundles`: of its runner. `hold`: what has to be held first, if it can sleep."""

    launch: Launch
    bundles: Sequence[Bundle]
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """`clean`: its one runner is known and ends in order, so its placement group is its last trace."""

    replica: ReplicaId
    clean: bool


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """The engine of a replica is gone: nothing is lost by ending its runner by force."""

    replica: ReplicaId


Order = Start | Stop | EngineEnded | Hold


@dataclass
class Holding:
    """Ray does not hold it yet. `start` waits for that."""

    hold: Hold
    until_s: float
    start: Start | None = None


@dataclass
class Leaving:
    """A replica whose application is deleted and not gone yet."""

    app: str
    clean: bool
    forced: bool = False
    deleted_s: float = 0.0  # when Serve was last asked
    accepted_s: float | None = None  # when it first agreed

    @property
    def settled(self) -> bool:
        """Serve starts nothing for it any more, though it may remember it for long (on a node that is lost)."""
        return self.accepted_s is not None and time.monotonic() > self.accepted_s + SETTLED_AFTER_S


class Executor:
    def __init__(self, heard: Heard, store: Store, orders: Iterable[Order] = ()) -> None:
        self._heard = heard
        self._store = store
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self.order(orders)
        self._leaving: dict[ReplicaId, Leaving] = {}
        self._holding: dict[ReplicaId, Holding] = {}
        self._freeing: set[ReplicaId] = set()  # their engines are gone, their devices are to be given back
        self._ended_s: dict[ReplicaId, float] = {}  # when the engine of one that leaves was gone
        self._look_pause_s = FIRST_LOOK_S
        self._thread = threading.Thread(target=self._work, name="executor", daemon=True)
        self._thread.start()

    def order(self, orders: Iterable[Order]) -> None:
        """Never blocks."""
        for order in orders:
            self._orders.put(order)

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join(timeout=TRIES_S)

    # -- in its thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while (orders := self._take()) is not None:
            try:
                stops = [order for order in orders if isinstance(order, Stop)]
                stopped = {stop.replica for stop in stops}  # one that is to be stopped already need not start
                starts = [order for order in orders if isinstance(order, Start)]
                self._stop(stops)
                self._note_ends([order.replica for order in orders if isinstance(order, EngineEnded)])
                self._hold([order for order in orders if isinstance(order, Hold)])
                self._start([start for start in starts if start.launch.replica not in stopped])
                self._look()
            except Exception:
                logger.exception("the executor failed; it goes on")
                time.sleep(LOOK_PAUSE_MAX_S)

    def _take(self) -> list[Order] | None:
        """All orders that are there; waits for one, or until it is time to look for exits. None: the end."""
        orders: list[Order] = []
        try:
            looks = self._leaving or self._holding or self._freeing
            order = self._orders.get(timeout=self._look_pause_s if looks else None)
            while order is not None:
                orders.append(order)
                order = self._orders.get_nowait()
        except queue.Empty:
            return orders
        return None

    def _note_ends(self, replicas: Iterable[ReplicaId]) -> None:
        """An engine that ends by itself does so before it is stopped."""
        for replica in replicas:
            self._ended_s[replica] = time.monotonic()
            self._freeing.add(replica)
            self._look_pause_s = FIRST_LOOK_S

    def _stop(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            leaving = Leaving(app_name(stop.replica), stop.clean)
            self._leaving[stop.replica] = leaving
            self._holding.pop(stop.replica, None)
            self._look_pause_s = FIRST_LOOK_S
            self._delete(leaving)

    def _delete(self, leaving: Leaving) -> None:
        leaving.deleted_s = time.monotonic()
        try:
            _patiently(lambda: serve.delete(leaving.app, _blocking=False))
            leaving.accepted_s = leaving.accepted_s or time.monotonic()
        except Exception:
            logger.exception("Serve did not delete %s; it will be asked again", leaving.app)

    def _hold(self, holds: Iterable[Hold], start: Start | None = None) -> None:
        for hold in holds:
            if hold.replica not in self._leaving:
                self._holding[hold.replica] = Holding(hold, time.monotonic() + HOLD_WITHIN_S, start)
                self._look_pause_s = FIRST_LOOK_S

    def _start(self, starts: Sequence[Start]) -> None:
        for start in starts:
            if start.hold is not None:
                self._hold([start.hold], start)
        self._run([start for start in starts if start.hold is None])

    def _run(self, starts: Sequence[Start]) -> None:
        if not starts:
            return
        try:
            for start in starts:
                model, _, serial = start.launch.replica.rpartition("#")
                self._store.write_serial(model, int(serial))
            targets = [_target(start) for start in starts]
            _patiently(
                lambda: serve.run_many(
                    targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
                )
            )
        except Exception as problem:
            logger.exception("Serve refused to start %s", ", ".join(start.launch.replica for start in starts))
            for start in starts:
                self._heard.start_failed(start.launch.replica, f"Ray Serve did not start its runner: {problem}")

    def _look(self) -> None:
        if not (self._leaving or self._holding or self._freeing):
            return
        groups = held_groups()
        for replica in self._freeing:
            self._remove(group for group in groups.get(replica, ()) if group.is_of_devices)
        self._freeing.clear()
        self._look_for_holds(groups)
        self._look_for_exits(groups)
        self._look_pause_s = min(1.5 * self._look_pause_s, LOOK_PAUSE_MAX_S)

    def _look_for_holds(self, groups: Mapping[ReplicaId, Sequence[HeldGroup]]) -> None:
        ready: list[Start] = []
        for replica, holding in list(self._holding.items()):
            hold, start = holding.hold, holding.start
            held = [group for group in groups.get(replica, ()) if group.is_of_devices]
            self._remove(group for group in held if group.name != hold.name)
            mine = next((group for group in held if group.name == hold.name), None)
            if mine is not None and mine.state == "CREATED":
                del self._holding[replica]
                if start is not None:
                    ready.append(start)
                else:
                    self._heard.devices_held(replica, hold.turn)
            elif time.monotonic() > holding.until_s:
                del self._holding[replica]
                self._remove(held)
                self._not_held(hold, start)
            elif mine is None:
                self._make(hold)
        self._run(ready)

    def _make(self, hold: Hold) -> None:
        try:
            make_group(hold.name, hold.bundle)
        except Exception:
            logger.exception("Ray did not take the placement group of %s; it will be asked again", hold.replica)

    def _not_held(self, hold: Hold, start: Start | None) -> None:
        wanted = ", ".join(f"{amount:g} of {name}" for name, amount in hold.bundle.resources.items())
        detail = f"Ray did not hold {wanted} for {hold.replica} within {HOLD_WITHIN_S:g} s; `ray status` says who does"
        if start is not None:
            self._heard.start_failed(hold.replica, detail)
        else:
            self._heard.hold_failed(hold.replica, detail)

    def _look_for_exits(self, groups: Mapping[ReplicaId, Sequence[HeldGroup]]) -> None:
        apps: frozenset[ReplicaId] | None = None
        for replica, leaving in list(self._leaving.items()):
            if time.monotonic() > leaving.deleted_s + DELETE_AGAIN_S:
                self._delete(leaving)
            if held := groups.get(replica):
                self._force(replica, leaving, held)
                continue
            if not leaving.clean and not leaving.settled:
                apps = listed_replicas() if apps is None else apps
                if replica in apps:
                    continue
            del self._leaving[replica]
            self._ended_s.pop(replica, None)
            self._heard.group_gone(replica)

    def _force(self, replica: ReplicaId, leaving: Leaving, groups: Sequence[HeldGroup]) -> None:
        """To remove its placement group ends a runner. Serve does that too, but takes three rounds of its control
        loop, and half a minute where HAProxy might still send requests; a runner gets none. Where the runner's is gone,
        the one of its devices is left behind."""
        if all(group.is_of_devices for group in groups):
            self._remove(groups)
            return
        ended_s = self._ended_s.get(replica)
        patience_s = 0.0 if leaving.clean else FORCE_AFTER_S
        if ended_s is None or leaving.forced or time.monotonic() < ended_s + patience_s:
            return
        leaving.forced = True
        self._remove(groups)

    def _remove(self, groups: Iterable[HeldGroup]) -> None:
        for group in groups:
            remove_group(group.id)


def listed_replicas() -> frozenset[ReplicaId]:
    """The replicas that Serve has applications for. Blocks for a call to Serve's controller."""
    found = (replica_of_app(app) for app in serve.status().applications)
    return frozenset(replica for replica in found if replica is not None)


def start_problems(replicas: Iterable[ReplicaId]) -> dict[ReplicaId, str]:
    """Those of these replicas whose runner Serve has given up, with its words. Blocks like `listed_replicas`."""
    applications = serve.status().applications
    problems = {}
    for replica in replicas:
        application = applications.get(app_name(replica))
        if application is not None and application.status in GIVEN_UP:
            problems[replica] = f"Ray Serve could not start its runner: {application.message}"
    return problems


def _target(start: Start) -> serve.RunTarget:
    launch = start.launch
    runner = serve.deployment(Runner).options(
        name=RUNNER_DEPLOYMENT,
        num_replicas=1,
        # Deaths are reported by the node's agent within milliseconds; Serve's own look is the last net.
        health_check_period_s=10,
        health_check_timeout_s=60,
        graceful_shutdown_wait_loop_s=0.01,
        graceful_shutdown_timeout_s=launch.stop_grace_s + 5,
        ray_actor_options=launch.actor_options,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        **serve_options(start.bundles),
    )
    return serve.RunTarget(runner.bind(launch), name=app_name(launch.replica), route_prefix=None)


def _patiently(call: object) -> None:
    """Call until it works, for as long as Serve's controller may take to come back; then raise its error."""
    deadline_s = time.monotonic() + TRIES_S
    while True:
        try:
            call()  # type: ignore[operator]
            return
        except ray.exceptions.RayActorError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(LOOK_PAUSE_MAX_S)
