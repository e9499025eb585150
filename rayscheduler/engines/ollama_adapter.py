"""What serves the port of an `ollama` replica: an HTTP server in front of a daemon, ready while its model is loaded.

    POST /v1/…       to the daemon, with the model by its name there; the answer is streamed back untouched
    GET  /v1/models  the one model
    GET  /health     200 once the model is loaded, 503 before
    GET  /stats      in_flight, size_bytes, vram_bytes, context_length, held_elsewhere_bytes

A life: the daemon answers ─► the model is in its store ─► loaded, and no larger than reserved ─► watched, until
the daemon or the model is gone, which ends this process with the reason, or SIGTERM, which ends it in peace.

Rules of this file: none of the daemon's own paths (/api/…) can be reached from outside, as some delete models. A
request whose daemon does not answer is cut off, not answered: the gateway then tries another replica.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import aiohttp
from aiohttp import web

from rayscheduler.engines.ollama import Plan
from rayscheduler.engines.ollama_daemon import Daemon, DaemonBusy, DaemonGone, Loaded
from rayscheduler.engines.ollama_loan import Loan
from rayscheduler.engines.ollama_server import OwnDaemon
from rayscheduler.errors import EngineError

MODEL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
BODY_BYTES_MAX = 1 << 30  # the gateway has a limit of its own
FIRST_LOOK_S, LOOK_PAUSE_MAX_S = 0.020, 0.250
SILENT_S_MAX = 300.0  # a busy daemon may not answer for a while
GIVE_BACK_S = 8.0  # less than what a runner waits before it kills
CONNECT_S_MAX = 5.0
CUT_OFF_S = 0.01  # aiohttp waits for ever for 0

_NOT_FORWARDED = frozenset(
    {
        *("host", "authorization", "connection", "keep-alive", "content-length", "transfer-encoding", "te", "trailer"),
        *("upgrade", "expect", "accept-encoding", "content-type"),
    }
)
_NOT_RETURNED = frozenset({"connection", "keep-alive", "transfer-encoding", "trailer", "upgrade", "date", "server"})


async def serve(plan: Plan, api_key: str, own: OwnDaemon | None) -> None:
    """Serve until SIGTERM. EngineError: why it could not, or cannot any longer."""
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
        auto_decompress=False,
    ) as session:
        tenant = Tenant(plan, Daemon(session, own.url if own else plan.daemon or ""), own)
        front = Front(plan, api_key, tenant)
        served = front.application()
        server = web.AppRunner(served, handler_cancellation=True, access_log=None, shutdown_timeout=CUT_OFF_S)
        await server.setup()
        await web.TCPSite(server, plan.host, plan.port).start()
        living = loop.create_task(tenant.live())
        ending = loop.create_task(told_to_end.wait())
        await asyncio.wait({living, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        living.cancel()
        await asyncio.wait({living})
        await server.cleanup()  # whoever is being answered is cut off, so that the daemon stops at once
        await tenant.leave()
        if not living.cancelled() and not told_to_end.is_set():  # the daemon has heard the same signal
            living.result()


class Tenant:
    """The model's stay in the daemon. `loaded` None: it cannot answer."""

    def __init__(self, plan: Plan, daemon: Daemon, own: OwnDaemon | None) -> None:
        self.daemon = daemon
        self.loaded: Loaded | None = None
        self.doubted = asyncio.Event()  # a request has found the daemon silent, or it has ended: look now
        self._looked = asyncio.Event()  # set by the next look, and then another
        self._plan, self._own = plan, own
        self._loan: Loan | None = None
        self._digest = ""

    async def live(self) -> None:
        """Load the model and watch over it. Ends with the EngineError that says why it cannot be served."""
        plan = self._plan
        version = await self._version_once_it_answers()
        self._digest = await self.daemon.digest_of(plan.tag)
        if self._own:
            _call_at_exit(self._own.process.pid, self.doubted.set)
            await self.daemon.load(plan, keep_alive_s=-1)
        else:
            self._loan = Loan(plan, self.daemon, self._digest)
            await self._loan.load()
        loaded = await self._checked()
        print(f"Ollama {version} at {self.daemon.url}: {loaded.told(plan)}", file=sys.stderr, flush=True)
        self.loaded = loaded
        await self._watch()

    async def leave(self) -> None:
        """Give back what was borrowed; a daemon of our own ends with us."""
        self.loaded = None
        if self._loan is not None and not await self._loan.give_back(GIVE_BACK_S):
            within = f"within {self._plan.keep_alive_s:g} s"
            print(f"warning: {self._plan.tag} may still be loaded; its daemon unloads it {within}", file=sys.stderr)

    async def _version_once_it_answers(self) -> str:
        """Wait for a daemon of our own, as long as it runs; the operator's is there or is not."""
        pause_s = FIRST_LOOK_S
        while True:
            try:
                return await self.daemon.check_version()
            except DaemonGone as gone:
                if self._own is None:
                    raise EngineError(f"{gone}; start it with `ollama serve`, or leave out `daemon`") from gone
                self._see_that_own_runs()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_PAUSE_MAX_S)

    async def _watch(self) -> None:
        """Look now and then. EngineError as soon as the model cannot be counted on, or takes what it must not."""
        loop = asyncio.get_running_loop()
        heard_s = loop.time()
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.doubted.wait(), self._plan.watch_s)
            self.doubted.clear()
            self._see_that_own_runs()
            try:
                self.loaded = await self._checked()
                heard_s = loop.time()
            except DaemonBusy:
                if loop.time() - heard_s > SILENT_S_MAX:
                    raise
            if self._loan is not None:
                await self._loan.renew()
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()

    async def look_again(self) -> None:
        """Returns when a look has found the model in its place. If none can, this process ends."""
        self.doubted.set()
        await self._looked.wait()

    async def _checked(self) -> Loaded:
        loaded = await self.daemon.loaded(self._digest)
        if loaded is None:
            raise EngineError(
                f"the daemon at {self.daemon.url} has it loaded no longer: its model process ended, "
                "somebody unloaded it, or it made room for another model"
            )
        if problem := loaded.misfit(self._plan):
            raise EngineError(problem)
        return loaded

    def _see_that_own_runs(self) -> None:
        if self._own is not None and self._own.ended:
            raise EngineError(f"the daemon of this replica, `ollama serve`, {self._own.ended}")


class Front:
    """The HTTP server. Requests are cancelled when their client is gone, and so is what they ask of the daemon."""

    def __init__(self, plan: Plan, api_key: str, tenant: Tenant) -> None:
        self._plan, self._tenant = plan, tenant
        self._authorization = f"Bearer {api_key}".encode()
        self._in_flight = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.add_routes([web.post(path, self._relay) for path in MODEL_PATHS])
        application.add_routes([web.get("/health", self._health), web.get("/stats", self._stats)])
        application.add_routes([web.get("/v1/models", self._models)])
        return application

    async def _health(self, request: web.Request) -> web.Response:
        ready = self._tenant.loaded is not None
        return web.json_response({"status": "ok" if ready else "loading"}, status=200 if ready else 503)

    async def _stats(self, request: web.Request) -> web.Response:
        loaded = self._tenant.loaded
        if refusal := self._refusal(request):
            return refusal
        assert loaded is not None
        held_bytes = loaded.on_devices_bytes(self._plan.on_gpus)
        return web.json_response(
            {
                "in_flight": self._in_flight,
                "size_bytes": loaded.size_bytes,
                "vram_bytes": loaded.vram_bytes,
                "context_length": loaded.context_length,
                "held_elsewhere_bytes": held_bytes if self._plan.daemon else 0,
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        entry = {"id": self._plan.model, "object": "model", "created": 0, "owned_by": "rayscheduler"}
        return self._refusal(request) or web.json_response({"object": "list", "data": [entry]})

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        try:
            asked = json.loads(await request.read())
            body = json.dumps({**asked, "model": self._plan.tag}, separators=(",", ":")).encode()
        except (ValueError, TypeError, RecursionError):
            return _error(400, "invalid_request_error", "the body is not a JSON object")
        self._in_flight += 1
        try:
            return await self._stream(request, body)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            if request.transport is None or request.transport.is_closing():
                raise  # it is the client that is gone
            print(f"the daemon broke off: {error or type(error).__name__}", file=sys.stderr, flush=True)
            await self._tenant.look_again()  # if it is gone, this port is closed before this request is cut off
            request.transport.abort()
            return _error(502, "server_error", "the daemon broke off")  # which nobody hears
        finally:
            self._in_flight -= 1

    async def _stream(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED]
        headers.append(("Content-Type", "application/json"))
        daemon = self._tenant.daemon
        async with daemon.session.post(daemon.url + request.path_qs, data=body, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _NOT_RETURNED:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The answer to those who do not know the key, or come too early."""
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            return _error(401, "authentication_error", "the bearer token is missing or wrong")
        if self._tenant.loaded is None:
            return _error(503, "unavailable_error", f"{self._plan.model} is loading")
        return None


def _call_at_exit(pid: int, call: Callable[[], None]) -> None:
    """Call once when that child has ended."""
    loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        call()

    loop.add_reader(pidfd, ended)


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}},
        status=status,
        headers={"Retry-After": "1"} if status == 503 else None,
    )
