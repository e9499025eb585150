"""The section `limits:`: its defaults, what it becomes for the gateway, what it does not take."""

from __future__ import annotations

import pytest

from rayscheduler.config.limits import LimitsSection
from rayscheduler.config.service import ServiceConfig, config_from_json, config_from_text
from rayscheduler.errors import ConfigError


def parsed(limits: str) -> ServiceConfig:
    return config_from_text(f"limits: {limits}\nmodels:\n  - {{name: a, engine: simulated, memory: 1GiB}}\n")


def test_what_the_gateway_is_told() -> None:
    told = parsed("{body: 1MiB, queue_wait: never, client_idle: 1500ms, answer: 10m}").limits.gateway_settings()
    assert (told["body_bytes_max"], told["queue_wait_ms_max"]) == (2**20, None)
    assert (told["client_idle_s_max"], told["answer_s_max"]) == (1.5, 600)
    assert told["idle_s_max"] == 600, "what is not said has its default"


def test_stored_it_reads_back_as_itself() -> None:
    config = parsed("{answer: never, headers: 8KiB}")
    assert config_from_json(config.to_json()).limits == config.limits
    assert config.limits != LimitsSection()


@pytest.mark.parametrize(
    "wrong",
    ["{client_idle: 0s}", "{answer: 0}", "{queue_wait: 0s}", "{body: 0}", "{bodies: 1MiB}", "{body_time: never}"],
)
def test_what_is_no_limit(wrong: str) -> None:
    with pytest.raises(ConfigError, match="<config>:1"):
        parsed(wrong)
