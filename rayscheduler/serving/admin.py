"""What operators and the page ask: the state of the cluster, and the verbs load, unload, pin, unpin.

Rules of this file: every answer is a value to be sent as JSON; the allocator is asked once per request and
never waited for while it is away (its absence is an answer, too). Names of models hold `/` and `:`. Any caller
may look; to change something takes the scope `admin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rayscheduler.cluster.allocator_port import AllocatorPort, Answer
from rayscheduler.cluster.keys import Scope
from rayscheduler.errors import RequestRejected
from rayscheduler.serving.asgi import Headers, header
from rayscheduler.serving.keyring import Caller
from rayscheduler.serving.openai import ApiError

API = "/api/v1/"
MODELS = "/v1/models"
VERBS = ("load", "unload", "pin", "unpin")
DECISIONS_MAX = 1000
PARTS = ("replicas", "nodes", "queue")


class Admin:
    """Answers for everything but the models themselves. `created`: when the service came up, in unix s."""

    def __init__(self, allocator: AllocatorPort, created: int) -> None:
        self._allocator = allocator
        self._created = created

    async def answer(self, caller: Caller, method: str, path: str, query: bytes, headers: Headers) -> object:
        """The JSON value for a request to `/v1/models…` or `/api/v1/…`; ApiError 400, 403, 404, 405."""
        if path == MODELS or path.startswith(MODELS + "/"):
            allowed(method, "GET")
            return await self._models(path[len(MODELS) + 1 :], caller)
        name = path[len(API) :]
        if name.startswith("models/"):
            return await self._act(caller, method, name[len("models/") :], query, headers)
        if name == "decisions":
            allowed(method, "GET")
            return await self._decisions(parse_qs(query.decode("latin-1")))
        if name == "explain":
            allowed(method, "GET")
            return await self._explain(parse_qs(query.decode("latin-1")))
        if name == "status" or name in PARTS:
            allowed(method, "GET")
            status = await self._allocator.status()
            return status if name == "status" else status[name]
        raise not_found(path)

    async def _models(self, name: str, caller: Caller) -> object:
        """Those that the caller may ask."""
        status = await self._allocator.status()
        entries = [self._model_entry(model, status) for model in status["models"]]
        entries += [self._adapter_entry(adapter, status) for adapter in status["adapters"]]
        entries = [entry for entry in entries if caller.may_ask(entry["id"])]
        if not name:
            return {"object": "list", "data": entries}
        for entry in entries:
            if name == entry["id"] or name in entry["aliases"]:
                return entry
        raise ApiError(404, "model_not_found", f"The model `{name}` does not exist.")

    def _model_entry(self, model: Answer, status: Answer) -> Mapping[str, Any]:
        """OpenAI's four keys, then ours: whether the model is loaded, and where."""
        places = [
            {key: replica[key] for key in ("id", "state", "nodes", "devices")}
            for replica in status["replicas"]
            if replica["model"] == model["name"]
        ]
        return {
            "id": model["name"],
            "object": "model",
            "created": self._created,
            "owned_by": "rayscheduler",
            "state": model["state"],
            "loaded": model["state"] == "loaded",
            "aliases": model["aliases"],
            "engine": model["engine"],
            "pinned": model["pinned"],
            "replicas": places,
        }

    def _adapter_entry(self, adapter: Answer, status: Answer) -> Mapping[str, Any]:
        """As of a model, and its base as vLLM says it: `parent`. It is loaded where a replica of that holds it."""
        of_base = next(model for model in status["models"] if model["name"] == adapter["base"])
        entry = dict(self._model_entry(of_base, status))
        places = [place for place in entry["replicas"] if place["id"] in adapter["replicas"]]
        state = {"state": "loaded" if places else "unloaded", "loaded": bool(places), "replicas": places}
        return {**entry, **state, "id": adapter["name"], "aliases": adapter["aliases"], "parent": adapter["base"]}

    async def _decisions(self, query: Mapping[str, list[str]]) -> object:
        text = query.get("limit", ["100"])[-1]
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= DECISIONS_MAX):
            raise ApiError(400, "invalid_limit", f"`limit` must be a number from 1 to {DECISIONS_MAX}.", param="limit")
        return await self._allocator.decisions(int(text), query.get("subject", [None])[-1])

    async def _explain(self, query: Mapping[str, list[str]]) -> object:
        subject = query.get("subject", [""])[-1]
        if not subject:
            raise ApiError(400, "no_subject", "Name a model, replica or request in `subject`.", param="subject")
        return unless_refused(await self._allocator.explain(subject))

    async def _act(self, caller: Caller, method: str, rest: str, query: bytes, headers: Headers) -> object:
        name, _, verb = rest.rpartition("/")
        if verb not in VERBS or not name:
            raise not_found(f"{API}models/{rest}")
        allowed(method, "POST")
        caller.require(Scope.ADMIN)
        _refuse_other_sites(headers)
        if verb == "load":
            wait = parse_qs(query.decode("latin-1")).get("wait", ["false"])[-1]
            answer = await self._allocator.load(name, wait.lower() in ("1", "true"), caller.name)
        elif verb == "unload":
            answer = await self._allocator.unload(name, caller.name)
        else:
            answer = await self._allocator.pin(name, verb == "pin", caller.name)
        return unless_refused(answer)


def unless_refused(answer: Answer) -> Answer:
    """RequestRejected if that is what the allocator answered."""
    if error := answer.get("error"):
        raise RequestRejected(error["code"], error["status"], error["message"], error.get("retry_after_s"))
    return answer


def allowed(method: str, *methods: str) -> None:
    """ApiError 405 unless the method is one of these. Whoever may GET may ask for the HEAD."""
    if method not in methods and not (method == "HEAD" and "GET" in methods):
        raise ApiError(405, "method_not_allowed", f"{method} is not allowed here.", allow=", ".join(methods))


def not_found(path: str) -> ApiError:
    return ApiError(404, "unknown_path", f"There is nothing at {path}.")


def _refuse_other_sites(headers: Headers) -> None:
    """A web page from elsewhere, open in an operator's browser, must not be able to unload models."""
    origin = header(headers, b"origin").decode("latin-1")
    if origin and urlsplit(origin).netloc != header(headers, b"host").decode("latin-1"):
        raise ApiError(403, "other_origin", f"Pages from {origin} may not change anything here.")
