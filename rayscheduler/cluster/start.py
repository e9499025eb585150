"""The service as a whole: up on a fresh Ray head or on a cluster that is there, and down again.

    start_service ─► (Ray's head) ─► Serve ─► allocator actor ─► gateway ─► front door answers
    stop_service  ─► replicas stopped, exits confirmed ─► gateway, allocator ─► (Serve, Ray's head)

Rules of this file: blocking, for the command line and for tests. Only what was started here is taken down.
"""

from __future__ import annotations

import ipaddress
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil
import ray

from rayscheduler.cluster.joining import join, use_token
from rayscheduler.cluster.keys import Scope, digest_of
from rayscheduler.cluster.names import ALLOCATOR, GATEWAY_APP, LOCAL_OPERATOR, NAMESPACE
from rayscheduler.cluster.ports import require_free_port
from rayscheduler.cluster.ray_head import serve_environment, start_head, stop_head
from rayscheduler.cluster.resources import detect_devices, resources_json
from rayscheduler.cluster.running import Service, forget, remember
from rayscheduler.config.service import ServiceConfig, load_config
from rayscheduler.errors import AllocatorUnavailable, KeyNeeded, RayschedulerError, RequestRejected

DEPLOY_WITHIN_S = 60.0
FRONT_DOOR_WITHIN_S = 60.0
SHUTDOWN_WITHIN_S = 60.0
KEYS_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02
ADMIN_KEY = "admin"

Said = Callable[[str], None]


def start_service(
    config: str | os.PathLike[str] | ServiceConfig,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    address: str | None = None,
    lend_bytes: int | None = None,
    simulate: str | None = None,
    gateway: Mapping[str, Any] | None = None,
    admin_key: str | None = None,
    checked: bool = False,
    say: Said = lambda line: None,
    **head_options: Any,
) -> Service:
    """Bring the service up, and return when its front door answers.

    `address`: join this cluster, as `host:port`, instead of starting a head with what this machine lends
    (`lend_bytes`, `simulate`, and for tests `start_head`'s options). `gateway`: its settings. `host`:
    where its front door listens; other machines are answered only where there is an API key to let them in.
    `admin_key`: the key that may do all, called `admin`. What fails is taken down again.

    KeyNeeded, ConfigError, ResourceError, PortInUse, HeadFailed, VersionMismatch, AllocatorUnavailable.
    """
    if address is None and admin_key is None and not is_loopback(host):
        raise KeyNeeded(host)  # a fresh head has no keys
    deployed = config if isinstance(config, ServiceConfig) else load_config(config)
    service = Service(address or "", f"http://127.0.0.1:{port}", None, owns_serve=False)
    ours = False  # whether what has to be taken down, if this fails, was made here
    try:
        if address is None:
            inventory = detect_devices(lend_bytes, simulate)
            require_free_port(port)
            say("starting Ray")
            use_token()
            head = start_head(resources_json(inventory), **head_options)
            service = replace(service, address=head.address, head=head, owns_serve=True)
            remember(service)
        _join(service)
        service = replace(service, address=ray.get_runtime_context().gcs_address)  # `auto` has become an address
        starts_serve = not _serve_is_there()
        if starts_serve and _head_is_here():
            require_free_port(port)
        ours = not _allocator_is_there()
        say("starting Ray Serve and the allocator")
        allocator = _make_allocator(checked)
        listens = _http_host(host)
        say(_let_in(allocator, admin_key, listens))
        if starts_serve:
            service = replace(service, owns_serve=True)
            _start_serve(host, port)
        _deploy(allocator, deployed)
        say("starting the gateway")
        limits = deployed.limits.gateway_settings()
        _start_gateway({"needs_key": not is_loopback(listens), **limits, **(gateway or {})})
        service = replace(service, http_url=f"http://127.0.0.1:{_http_port(port)}")
        _wait_front_door(service.http_url)
        remember(service)
        return service
    except BaseException:
        if service.head is not None or ours:
            with suppress(Exception):
                stop_service(service)
        raise


def stop_service(service: Service, say: Said = lambda line: None) -> bool:
    """Take the service down, with what was started for it and nothing else; False if it was not there."""
    there = True
    try:
        _join(service)
        say("stopping the replicas")
        _shut_down(service.owns_serve, ends_ray=service.head is not None, say=say)
    except AllocatorUnavailable:
        there = service.head is not None
    finally:
        _leave()
        if service.head is not None:
            say("stopping Ray")
            stop_head(service.head)
        forget(service)
    return there


def _join(service: Service) -> None:
    if service.head is not None:
        # Whoever starts Serve agrees with its head on that.
        os.environ.update(serve_environment(service.head.haproxy))
    join(service.address)


def _leave() -> None:
    with suppress(Exception):
        ray.shutdown()


def _make_allocator(checked: bool) -> Any:
    from rayscheduler.cluster.allocator import CONCURRENCY, Allocator

    return (
        ray.remote(Allocator)
        .options(
            name=ALLOCATOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=CONCURRENCY,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
        )
        .remote(checked)
    )


def _allocator_is_there() -> bool:
    try:
        ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _serve_is_there() -> bool:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None


def _start_serve(host: str, port: int) -> None:
    from ray import serve

    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})


def _head_is_here() -> bool:
    """Whether Serve's proxy, which is on the head, will listen on this machine."""
    heads = {node["NodeManagerAddress"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]}
    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return bool(heads & here)


def _http_port(wished: int) -> int:
    """Serve that was there already keeps its port."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return int(client.http_config.port) if client is not None else wished


def _http_host(wished: str) -> str:
    """Serve that was there already listens where it did."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return str(client.http_config.host) if client is not None else wished


def is_loopback(host: str) -> bool:
    """Whether who listens there is reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _let_in(allocator: Any, admin_key: str | None, host: str) -> str:
    """Make the first key, if one is given. Whom the service answers, in words; KeyNeeded where others would be
    answered, and there is no key."""
    if admin_key is not None:
        settings = {"name": ADMIN_KEY, "digest": digest_of(admin_key), "scopes": [scope.value for scope in Scope]}
        made = allocator.operate.remote(LOCAL_OPERATOR, "create_key", [settings, True])
        answer = ray.get(made, timeout=KEYS_WITHIN_S)
        if error := answer.get("error"):
            raise RequestRejected(error["code"], error["status"], error["message"])
    count = len(ray.get(allocator.listed_keys.remote(), timeout=KEYS_WITHIN_S))
    if not count and not is_loopback(host):
        raise KeyNeeded(host)
    who = "this machine only" if is_loopback(host) else f"all who reach {host}"
    key = f"needs one of {count} API keys" if count else "needs no API key (`rayscheduler keys create` makes one)"
    return f"the service answers {who}, and {key}"


def _deploy(allocator: Any, config: ServiceConfig) -> None:
    """Give the allocator its catalog; a restart that this takes is waited for."""
    deadline_s = time.monotonic() + DEPLOY_WITHIN_S
    while True:
        try:
            ray.get(allocator.operate.remote(LOCAL_OPERATOR, "deploy", [config.to_json()]), timeout=DEPLOY_WITHIN_S)
            return
        except ray.exceptions.RayActorError as problem:
            if time.monotonic() > deadline_s:
                raise AllocatorUnavailable(f"The allocator does not come up: {problem}") from problem
            time.sleep(LOOK_EVERY_S)


def _start_gateway(settings: dict[str, Any]) -> None:
    from ray import serve

    from deployments.gateway import build_app

    serve.run(build_app(settings), name=GATEWAY_APP, route_prefix="/")


def _wait_front_door(http_url: str) -> None:
    """Until the way from the port to the gateway works. What the gateway says of its health is its own affair."""
    deadline_s = time.monotonic() + FRONT_DOOR_WITHIN_S
    last: Exception | None = None
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{http_url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError) as problem:
            last = problem
        time.sleep(LOOK_EVERY_S)
    raise RayschedulerError(f"nothing answers at {http_url} after {FRONT_DOOR_WITHIN_S:g} s: {last}")


def _shut_down(owns_serve: bool, ends_ray: bool, say: Said) -> None:
    """Everything of ours on the cluster, in the order in which nothing is left behind."""
    from ray import serve

    try:
        allocator = ray.get_actor(ALLOCATOR, namespace=NAMESPACE)
    except ValueError:
        raise AllocatorUnavailable("The Ray cluster is there, but no rayscheduler on it.") from None
    try:
        ended = allocator.operate.remote(LOCAL_OPERATOR, "shutdown", [SHUTDOWN_WITHIN_S])
        answer = ray.get(ended, timeout=SHUTDOWN_WITHIN_S + 10)
        if not answer["ok"]:
            say(answer["message"])
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as problem:
        say(f"the allocator does not answer: {problem}")
    ray.kill(allocator, no_restart=True)
    if ends_ray:
        return
    serve.delete(GATEWAY_APP)
    if owns_serve and not serve.status().applications:
        serve.shutdown()
