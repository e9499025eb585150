"""The tree of errors: what people see, what HTTP clients see, and that all of it survives Ray's pickles."""

from __future__ import annotations

import pickle

import pytest

from rayscheduler import errors

ALL = [
    errors.RayschedulerError("it broke", 418, "teapot"),
    errors.ConfigError("a.yaml", 3, "'x' is wrong", "write y"),
    errors.EngineError("no engine"),
    errors.EngineMissing("llama-cpp is not installed; pip install rayscheduler[llama-cpp]"),
    errors.EngineFailed("it ended", "last\nlines"),
    errors.SourceError("a.gguf is not there"),
    errors.RequestRejected("queue_full", 429, "1000 wait already", retry_after_s=2),
    errors.AllocatorUnavailable("it is starting"),
    errors.VersionMismatch("Ray 1 is too old; pip install 'ray>=2.60'"),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: errors.RayschedulerError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_what_http_clients_see() -> None:
    seen = [(error.http_status, error.code) for error in ALL]
    assert seen == [
        (418, "teapot"),
        (400, "bad_config"),
        (503, "engine_error"),
        (503, "engine_missing"),
        (503, "load_failed"),
        (503, "bad_source"),
        (429, "queue_full"),
        (503, "allocator_unavailable"),
        (500, "version_mismatch"),
    ]


def test_a_config_error_is_one_line() -> None:
    assert str(ALL[1]) == "a.yaml:3: 'x' is wrong; write y"
    assert str(errors.ConfigError("a.yaml", None, "is empty", "")) == "a.yaml: is empty"
    assert str(errors.ConfigError("a\nb", 1, "\x1b[2J\ud800", "mend it")) == "a\\nb:1: \\x1b[2J\\ud800; mend it"


def test_a_failed_engine_shows_the_end_of_its_log() -> None:
    assert str(ALL[4]) == "it ended\nlast\nlines"
