"""What the gateway's tests stand on: an allocator in memory, and engines that are real HTTP servers.

Rules of this file: nothing sleeps; whoever waits, waits for a state that was announced, with a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from aiohttp import web
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from rayscheduler.cluster.keys import Key, key_of, version_of
from rayscheduler.cluster.names import LOCAL_OPERATOR
from rayscheduler.errors import AllocatorUnavailable
from rayscheduler.serving.gateway import Gateway

BOUND_S = 10.0


class Announcer:
    """Lets tests wait until something is so, woken by each announcement."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def announce(self) -> None:
        self._woken.set()
        self._woken = asyncio.Event()

    async def until(self, is_so: Callable[[], object]) -> None:
        async def wait() -> None:
            while not is_so():
                await self._woken.wait()

        await asyncio.wait_for(wait(), BOUND_S)


class FakeAllocator(Announcer):
    """Grants at once unless told otherwise. A test scripts the fields and looks at the records."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas: dict[str, list[tuple[str, str, str]]] = {}  # model -> [(replica, endpoint, key)]
        self.aliases: dict[str, str] = {}
        self.rejections: dict[str, dict[str, Any]] = {}
        self.held_back: set[str] = set()  # models whose requests wait
        self.away_for = 0  # so many calls fail, as while the actor restarts
        self.away = False
        self.broken: str | None = None  # the method that has a bug
        self.leases: dict[str, str] = {}  # request -> replica
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.asked: list[dict[str, Any]] = []
        self.released: list[list[str]] = []
        self.exchanges = 0
        self.unreachable: list[tuple[str, str]] = []
        self.heartbeats: list[tuple[str, list[list[str]]]] = []
        self.verbs: list[tuple[str, str, object]] = []
        self.acted: list[str] = []  # by whom, for each load, unload, pin
        self.api_keys: list[Key] = []
        self.tiers = {"interactive": 100, "batch": 0}
        self.looked_at_keys = 0
        self.state: dict[str, Any] = {"nodes": [], "replicas": [], "models": [], "adapters": [], "queue": []}

    def _call(self, method: str) -> None:
        self.announce()
        if self.broken == method:
            raise TypeError("a bug in the allocator")
        if self.away_for > 0:
            self.away_for -= 1
            raise AllocatorUnavailable("The allocator is restarting.")
        if self.away:
            raise AllocatorUnavailable("The allocator is away.")

    async def lease(
        self,
        model: str,
        request_id: str,
        holder: str,
        priority: int | None = None,
        tier: str | None = None,
        deadline_ms: int | None = None,
    ) -> dict[str, Any]:
        """What an exchange left open, as no request comes here first."""
        self._call("lease")
        waiter = self.waiting[request_id] = asyncio.get_running_loop().create_future()
        self.announce()
        try:
            await waiter
        except AllocatorUnavailable:
            raise
        except Exception as error:
            return rejection("cancelled", 499, str(error))
        finally:
            self.waiting.pop(request_id, None)
        return self._grant(self.aliases.get(model, model), request_id)

    async def exchange(self, holder: str, ended: list[str], asks: list[list[Any]]) -> list[dict[str, Any] | None]:
        for model, request_id, priority, tier, deadline_ms in asks:
            self.asked.append(
                {
                    "model": model,
                    "request_id": request_id,
                    "holder": holder,
                    "priority": priority,
                    "tier": tier,
                    "deadline_ms": deadline_ms,
                }
            )
        self.exchanges += 1
        self._call("asks" if asks else "exchange")
        if ended:
            self._release(ended)
        return [self._answer(model, request_id) for model, request_id, *_ in asks]

    def _answer(self, model: str, request_id: str) -> dict[str, Any] | None:
        name = self.aliases.get(model, model)
        if name in self.rejections:
            return {"granted": False, **self.rejections[name]}
        if name not in self.replicas:
            return rejection("model_not_found", 404, f"The model `{model}` does not exist.")
        return None if name in self.held_back else self._grant(name, request_id)

    def _grant(self, name: str, request_id: str) -> dict[str, Any]:
        # The next replica each time, as an allocator that was told of a dead one would do.
        replica, endpoint, key = self.replicas[name][0]
        self.replicas[name].append(self.replicas[name].pop(0))
        self.leases[request_id] = replica
        self.announce()
        return {"granted": True, "replica": replica, "endpoint": endpoint, "api_key": key, "model": name}

    def grant_all(self) -> None:
        self.held_back.clear()
        for waiter in list(self.waiting.values()):
            waiter.set_result(None)

    def _release(self, request_ids: list[str]) -> None:
        self.released.append(list(request_ids))
        for request_id in request_ids:
            self.leases.pop(request_id, None)
            if waiter := self.waiting.pop(request_id, None):
                waiter.set_exception(RuntimeError("The client hung up."))
        self.announce()

    async def replica_unreachable(self, replica_id: str, request_id: str) -> None:
        self._call("replica_unreachable")
        self.unreachable.append((replica_id, request_id))
        self.announce()

    async def heartbeat(self, holder: str, held: list[list[str]]) -> None:
        self._call("heartbeat")
        self.heartbeats.append((holder, held))
        self.announce()

    async def status(self) -> dict[str, Any]:
        self._call("status")
        return self.state

    async def models(self) -> list[dict[str, Any]]:
        self._call("models")
        return list(self.state["models"])

    async def decisions(self, limit: int = 100, subject: str | None = None) -> list[dict[str, Any]]:
        self._call("decisions")
        self.verbs.append(("decisions", str(limit), subject))
        return [{"serial": 1, "decision": "start", "why": "asked for"}]

    async def explain(self, subject: str) -> dict[str, Any]:
        self._call("explain")
        self.verbs.append(("explain", subject, None))
        if subject == "nobody":
            return {"error": {"code": "model_not_found", "status": 404, "message": "nothing is known of it"}}
        return {"subject": subject, "kind": "model", "decisions": []}

    async def load(self, model: str, wait: bool = False, by: str = LOCAL_OPERATOR) -> dict[str, Any]:
        return self._verb("load", model, wait, by)

    async def unload(self, model: str, by: str = LOCAL_OPERATOR) -> dict[str, Any]:
        return self._verb("unload", model, None, by)

    async def pin(self, model: str, pinned: bool, by: str = LOCAL_OPERATOR) -> dict[str, Any]:
        return self._verb("pin", model, pinned, by)

    async def keys(self, version: str = "") -> dict[str, Any]:
        self._call("keys")
        told = {"keys": [key.told() for key in self.api_keys], "tiers": self.tiers}
        self.looked_at_keys += 1
        return {"version": version_of(told), **told} if version_of(told) != version else {"version": version}

    async def known_keys(self) -> None:
        """Waits until the gateway has seen the keys as they are now."""
        seen = self.looked_at_keys + 1  # the look that is under way may have been before the change
        await self.until(lambda: self.looked_at_keys > seen)

    async def create_key(self, settings: dict[str, Any], replace: bool = False) -> dict[str, Any]:
        self._call("create_key")
        self.api_keys.append(key_of(settings))
        return {"ok": True, "message": f"key {settings['name']} is there", "key": {"name": settings["name"]}}

    async def revoke_key(self, name: str) -> dict[str, Any]:
        self._call("revoke_key")
        if name not in [key.name for key in self.api_keys]:
            return {"error": {"code": "key_not_found", "status": 404, "message": f"there is no key {name!r}"}}
        self.api_keys = [key for key in self.api_keys if key.name != name]
        return {"ok": True, "message": f"key {name} is revoked"}

    async def listed_keys(self) -> list[dict[str, Any]]:
        self._call("listed_keys")
        return [{"name": key.name} for key in self.api_keys]

    def _verb(self, verb: str, model: str, argument: object, by: str) -> dict[str, Any]:
        self._call(verb)
        self.acted.append(by)
        self.verbs.append((verb, model, argument))
        if model not in self.replicas:
            return {"error": {"code": "model_not_found", "status": 404, "message": f"No model {model}."}}
        return {"ok": True, "message": f"{verb} {model}"}


def rejection(code: str, status: int, message: str = "No.", retry_after_s: int | None = None) -> dict[str, Any]:
    return {
        "granted": False,
        "code": code,
        "status": status,
        "message": message,
        "retry_after_s": retry_after_s,
    }


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Engine(Announcer):
    """A real HTTP server that answers as the test says, and remembers what it was asked."""

    def __init__(self, name: str, key: str) -> None:
        super().__init__()
        self.name = name
        self.key = key
        self.endpoint = ""
        self.seen: list[tuple[web.Request, bytes]] = []
        self.hung_up = 0  # answers that ended because the other side closed
        self.handler: Handler = self.echo

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request, body))
        self.announce()
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "unauthorized"}, status=401)
        try:
            return await self.handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up += 1
            self.announce()
            raise

    async def echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        return web.Response(body=body, content_type="application/json", headers={"X-Engine": self.name})

    def json(self, index: int = -1) -> Any:
        return json.loads(self.seen[index][1])


@contextlib.asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", engine.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def under_uvicorn(gateway: Gateway) -> AsyncIterator[str]:
    """The gateway behind uvicorn's protocol, on a port of its own; gives its URL.

    Without uvicorn's `Server`, whose loop looks for its end ten times a second.
    """
    config = uvicorn.Config(gateway, ws="none", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    protocol = functools.partial(HttpToolsProtocol, config=config, server_state=state, app_state={})
    async with gateway.running():
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=BOUND_S)
