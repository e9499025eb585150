"""A machine with Ollama, as tests have it: a store of models, and a daemon that its operator runs for others too.

Rules of this file: `ollama` is the stand-in (ollama_stand_in.py), found by PATH as the real one is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from rayscheduler.engines.ports import claim_port
from tests.engines.pids import BOUND_S


class OllamaStore:
    """A folder of models and the program that serves them; `env` is how both are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "bin" / "ollama"
        self.program.parent.mkdir(parents=True)
        stand_in = Path(__file__).with_name("ollama_stand_in.py")
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -u {stand_in} "$@"\n')
        self.program.chmod(0o755)
        self.env = {"PATH": f"{self.program.parent}:{os.environ['PATH']}", "OLLAMA_MODELS": str(folder)}
        self._models: dict[str, object] = {}

    def add(self, name: str, **spec: object) -> None:
        """A model as ollama_stand_in.py describes it."""
        self._models[name] = {"size": 10 << 20, **spec}
        (self.folder / "models.json").write_text(json.dumps(self._models))


class Operator:
    """A daemon that was there before us, and what its owner does with it."""

    def __init__(self, store: OllamaStore) -> None:
        self.store = store
        port = claim_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{port.number}"
        environment = {**os.environ, **store.env, "OLLAMA_HOST": self.url.removeprefix("http://")}
        with open(store.folder / "operator.log", "wb") as log:
            self._process = subprocess.Popen(
                [str(store.program), "serve"], env=environment, stderr=log, start_new_session=True
            )
        port.release()
        self._http = httpx.Client(base_url=self.url, timeout=BOUND_S, transport=httpx.HTTPTransport(retries=8))
        self._http.get("/api/version")

    def loaded(self) -> list[str]:
        return sorted(model["name"] for model in self._http.get("/api/ps").json()["models"])

    def loads(self) -> int:
        told: int = self._http.get("/stand-in").json()["loads"]
        return told

    def ask(self, model: str, keep_alive: object) -> None:
        self._http.post("/api/generate", json={"model": model, "keep_alive": keep_alive}).raise_for_status()

    def die(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self._http.close()
        with suppress(ProcessLookupError):
            self.die()
