"""The command line run in this process: what it wrote and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rayscheduler.cli import control, loading, main
from tests.cli.doubles import FakeService


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def one_line(self) -> str:
        """The complaint, which must be one line and no traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAYSCHEDULER_ADDRESS", raising=False)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, written.out, written.err)

    return run


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """A service that the commands find at any address."""
    fake = FakeService()
    monkeypatch.setattr(control, "connected", fake.connected)
    monkeypatch.setattr(loading, "LOOK_AGAIN_S", 0.001)
    return fake
