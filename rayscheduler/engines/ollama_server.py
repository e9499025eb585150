"""The program of the engine `ollama`, started by ollama.py with one JSON argument.

Rules of this file: it starts a daemon of the replica's own, if it shall have one, before it imports what serves
the port (ollama_adapter.py): that takes half a second, in which the daemon starts too. The key comes by the
environment, and the daemon does not get it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from rayscheduler.engines.ollama import INSTALL, PROGRAM, Plan
from rayscheduler.engines.ports import ClaimedPort, claim_port
from rayscheduler.engines.protocol import API_KEY_ENV
from rayscheduler.errors import EngineError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class OwnDaemon:
    """`ollama serve`, our child: in our process group, and ended by our supervisor with us.

    Ollama knows no keys: who is logged in on this machine can ask it, on a port of the loopback address.
    """

    process: subprocess.Popen[bytes]
    port: ClaimedPort

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port.number}"

    @property
    def ended(self) -> str:
        """How it ended, in words; "" while it runs."""
        status = self.process.poll()
        if status is None:
            return ""
        return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def start_daemon() -> OwnDaemon:
    """EngineError: it cannot be run. It answers some time later, and the rest of its settings are our environment."""
    port = claim_port(LOOPBACK)
    environment = {**os.environ, "OLLAMA_HOST": f"{LOOPBACK}:{port.number}"}
    try:
        return OwnDaemon(subprocess.Popen([PROGRAM, "serve"], env=environment), port)
    except OSError as error:
        raise EngineError(f"`{PROGRAM} serve` cannot be run: {error.strerror}; to install it run: {INSTALL}") from error


def main(plan: Plan) -> None:
    api_key = os.environ.pop(API_KEY_ENV)
    try:
        own = None if plan.daemon else start_daemon()
        from rayscheduler.engines import ollama_adapter

        asyncio.run(ollama_adapter.serve(plan, api_key, own))
    except EngineError as error:
        sys.exit(f"ollama cannot serve {plan.tag}: {error}")


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
