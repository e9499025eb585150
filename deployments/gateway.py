"""The gateway as a Ray Serve deployment.

Rules of this file: the deployment's settings and nothing else; what it does is in `rayscheduler.serving`.
A request stays with its client for as long as the client likes, so nothing here limits or queues requests:
the allocator does, with a reason.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from rayscheduler.cluster.allocator_calls import AllocatorCalls
from rayscheduler.config.limits import LimitsSection
from rayscheduler.serving.gateway import Gateway, GatewayLimits
from rayscheduler.serving.relay import RelayLimits

REPLICAS = 1  # one event loop relays about a thousand requests a second
ONGOING_MAX = 20_000  # as many as the allocator takes
DRAIN_S_MAX = 30.0
RELAY_SETTINGS = ("idle_s_max", "client_idle_s_max", "answer_s_max")
PROCESS_SETTINGS = {
    # Requests run on the event loop that reads the socket: a hop to another thread costs each chunk.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # Behind HAProxy, which asks another replica when one refuses; Serve's 30 s of waiting for others to hear
    # of it would be 30 s of every `rayscheduler down`.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
}


@serve.deployment(
    name="Gateway",
    max_ongoing_requests=ONGOING_MAX,
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=DRAIN_S_MAX,
    graceful_shutdown_wait_loop_s=0.1,
    ray_actor_options={
        "num_cpus": 0,
        "runtime_env": {"env_vars": PROCESS_SETTINGS},
    },
    logging_config=LoggingConfig(enable_access_log=False),
)
@serve.ingress()
class GatewayDeployment:
    """One replica of the gateway: its own holder of leases, its own connections to the engines."""

    def __init__(self, **settings: Any) -> None:
        relay = RelayLimits(**{key: settings.pop(key) for key in RELAY_SETTINGS})
        self._limits = GatewayLimits(**settings, relay=relay)

    def __serve_build_asgi_app__(self) -> Gateway:
        return Gateway(AllocatorCalls(), self._limits)


def build_app(args: dict[str, Any]) -> serve.Application:
    """For `serve.run(..., route_prefix="/")` and Serve's config files.

    `args`: `replicas`, what the section `limits:` sets (`LimitsSection.gateway_settings`), and `needs_key`: nobody
    gets in without an API key, also while there is none; so by default: only who knows that no other machine
    reaches it may say false. ValueError names one that is not known.
    """
    known: dict[str, Any] = {"replicas": REPLICAS, "needs_key": True, **LimitsSection().gateway_settings()}
    if unknown := sorted(set(args) - set(known)):
        raise ValueError(f"the gateway has no setting {unknown[0]!r}; it has {', '.join(known)}")
    settings = {**known, **args}
    replicas = int(settings.pop("replicas"))
    deployment: Any = GatewayDeployment
    return deployment.options(num_replicas=replicas).bind(**settings)
