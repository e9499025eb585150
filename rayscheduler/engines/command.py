"""The engine `command`: any OpenAI-compatible server, by the command line in the model's `args`.

Rules of this file: no shell, ever; `args` is the argv. `${PORT}` and friends are replaced in `args` and in
the values of `env`; a name that is not known is an error, since an empty argument would say nothing.
`$${PORT}` stands for the text `${PORT}`. Over several nodes the same command runs on each, and has to
ask which of them it is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping

from rayscheduler.engines.containers import check_container
from rayscheduler.engines.protocol import Command, Engine, EngineRequest, check_environment
from rayscheduler.engines.python_package import python_environment
from rayscheduler.errors import EngineError, EngineMissing

NAME = "command"
_PLACE = re.compile(r"\$(\$?)\{([^}]*)\}")

VARIABLES: Mapping[str, str] = {
    "PORT": "the port to listen on",
    "HOST": "the address to listen on",
    "MODEL": "the model's name",
    "SOURCE": "the model's `source`",
    "API_KEY": "the token that requests carry; in argv others can read it, so prefer `env`",
    "CONTEXT_LENGTH": "the model's `context_length`",
    "CONCURRENCY": "the model's `concurrency`",
    "DEVICE_BYTES": "bytes reserved on each device",
    "NODE_RANK": "0 on the node that serves, then 1 and so on",
    "NODE_COUNT": "on how many nodes this replica has a process",
    "LEADER_HOST": "the address of the node that serves",
    "LEADER_PORT": "a free port there, for its processes to meet; 0 on a single node",
}


class CommandLine(Engine):
    """Serves what its command serves; ready when `ready_path` answers with 2xx."""

    name = NAME
    profiles_memory = True  # who knows what it runs

    def validate(self, request: EngineRequest) -> None:
        check_environment(request)
        check_container(request)
        if not request.args or not request.args[0]:
            raise EngineError(
                f"model {request.model} has no command; give it as `args`, such as "
                "[my-server, --port, '${PORT}', --model, '${SOURCE}']"
            )
        if not request.ready_path.startswith("/") or not request.ready_path.isprintable() or " " in request.ready_path:
            raise EngineError(
                f"model {request.model} has the ready_path {request.ready_path!r}; give one such as /health"
            )
        # Reserved bytes are known only once it is placed: any number shows whether the rest is right.
        known = self._variables(request, port=0, api_key="", host="") | {"DEVICE_BYTES": "0"}
        texts = (*request.args, *request.env.values())
        for text in texts:
            _filled(text, known, request.model)
        if request.node_count > 1 and "${NODE_RANK}" not in "".join(texts).replace("$${", ""):
            raise EngineError(
                f"model {request.model} is placed over {request.node_count} nodes, and its command cannot tell them "
                "apart; use ${NODE_RANK}, ${NODE_COUNT}, ${LEADER_HOST} and ${LEADER_PORT}, or leave out `across_nodes`"
            )

    def check(self, request: EngineRequest) -> None:
        self.validate(request)
        if request.container_image:
            return
        program = os.path.expanduser(request.args[0])
        inherited = {"PATH": os.environ.get("PATH", os.defpath)}
        path = {**inherited, **python_environment(request, inherited), **request.env}["PATH"]
        if shutil.which(program, path=path) is None:
            raise EngineMissing(
                f"model {request.model} is served by {program!r}, which is no program on this machine; "
                "install it, or give its full path"
            )

    def command(self, request: EngineRequest, port: int, api_key: str, host: str) -> Command:
        self.validate(request)
        known = self._variables(request, port, api_key, host)
        program, *arguments = (_filled(arg, known, request.model) for arg in request.args)
        return Command(
            argv=(os.path.expanduser(program), *arguments),
            env={key: _filled(value, known, request.model) for key, value in request.env.items()},
            ready_path="" if request.node_rank else request.ready_path,
            mounts=(known["SOURCE"],) if os.path.isabs(known.get("SOURCE", "")) else (),
        )

    def _variables(self, request: EngineRequest, port: int, api_key: str, host: str) -> dict[str, str]:
        """Name -> value, without those that this model has no value for."""
        known: dict[str, object] = {
            "PORT": port,
            "HOST": host,
            "MODEL": request.model,
            "SOURCE": request.source and os.path.expanduser(request.source),
            "API_KEY": api_key,
            "CONTEXT_LENGTH": request.context_length,
            "CONCURRENCY": request.concurrency,
            "DEVICE_BYTES": request.device_bytes[0] if request.device_bytes else None,
            "NODE_RANK": request.node_rank,
            "NODE_COUNT": request.node_count,
            "LEADER_HOST": request.leader_host or host,
            "LEADER_PORT": request.leader_port,
        }
        return {name: str(value) for name, value in known.items() if value is not None}


def _filled(text: str, known: Mapping[str, str], model: str) -> str:
    def value(place: re.Match[str]) -> str:
        escaped, name = place.groups()
        if escaped:
            return place.group()[1:]
        if name in known:
            return known[name]
        if name in VARIABLES:
            raise EngineError(
                f"model {model} uses ${{{name}}} ({VARIABLES[name]}), but has none; give it or leave it out"
            )
        names = ", ".join(f"${{{name}}}" for name in VARIABLES)
        raise EngineError(
            f"model {model} uses ${{{name}}}, which does not exist; known are {names}; $${{{name}}} is the text itself"
        )

    return _PLACE.sub(value, text)
