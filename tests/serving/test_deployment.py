"""The gateway's settings as a Serve deployment; how it runs there is for the integration tests."""

from __future__ import annotations

import pytest

from deployments.gateway import RELAY_SETTINGS, build_app
from rayscheduler.serving.gateway import GatewayLimits
from rayscheduler.serving.relay import RelayLimits


def test_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"no setting 'replica'.*replicas"):
        build_app({"replica": 2})


def test_settings_are_the_gateways() -> None:
    app = build_app({"replicas": 2, "body_bytes_max": 7})
    deployment = app._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests >= 10_000
    given = deployment.init_kwargs
    relay = RelayLimits(**{key: given.pop(key) for key in RELAY_SETTINGS})
    limits = GatewayLimits(**given)
    assert (limits, relay) == (GatewayLimits(body_bytes_max=7, needs_key=True), RelayLimits())
