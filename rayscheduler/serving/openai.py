"""What OpenAI's HTTP interface looks like: its paths, the model's name in a body, the shape of an error.

Rules of this file: bytes in, values out; no sockets, no Ray, no clock. A body is parsed once. Bodies of
multipart forms (audio, images) are searched for their `model` field, never copied apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from email.message import Message

from rayscheduler.errors import RayschedulerError

# Only these go on to an engine: engines have other paths (sleep, slots, metrics) that are nobody's business.
MODEL_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/rerank",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
    }
)
RETRY_AFTER_S = 1  # said with 429 and 503 where nobody knows better
FORM_PARTS_MAX = 64
# `name=`, not the end of `filename=`.
_FORM_FIELD_MODEL = re.compile(rb"""^content-disposition:[^\r\n]*[;\s]name="?model"?\s*(?:;|$)""", re.I | re.M)


class ApiError(RayschedulerError):
    """An error with everything that its HTTP answer says. `allow`: the methods that a 405 offers."""

    def __init__(
        self,
        http_status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message, http_status, code)
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow


def error_type(http_status: int) -> str:
    """OpenAI's word for the family of an error."""
    if http_status == 429:
        return "rate_limit_error"
    if http_status == 403:
        return "permission_error"
    return "invalid_request_error" if http_status < 500 else "server_error"


def error_body(error: RayschedulerError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}` as JSON on one line."""
    body = {
        "message": str(error),
        "type": error_type(error.http_status),
        "param": "model" if error.code == "model_not_found" else getattr(error, "param", None),
        "code": error.code,
    }
    return json.dumps({"error": body}).encode()


def error_headers(error: RayschedulerError) -> list[tuple[bytes, bytes]]:
    """`Retry-After` (whole seconds) with 429 and 503, `Allow` with 405, what is asked for with 401, and an end to a
    body not read."""
    headers = []
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.http_status in (429, 503):
        seconds = getattr(error, "retry_after_s", None)
        headers.append((b"retry-after", str(RETRY_AFTER_S if seconds is None else seconds).encode()))
    if allow := getattr(error, "allow", ""):
        headers.append((b"allow", allow.encode()))
    if error.http_status in (408, 413, 431):
        headers.append((b"connection", b"close"))
    return headers


def error_event(error: RayschedulerError) -> bytes:
    """The error as one server-sent event, as clients of a stream expect it."""
    return b"data: " + error_body(error) + b"\n\n"


@dataclass(slots=True)
class JsonCall:
    """A JSON body and the model that it names."""

    model: str
    body: bytes
    document: dict[str, object]

    def body_for(self, served: str) -> bytes:
        """The body for an engine that knows the model as `served`; the client's own bytes if it says so."""
        if served == self.model:
            return self.body
        return json.dumps({**self.document, "model": served}, separators=(",", ":")).encode()


@dataclass(slots=True)
class FormCall:
    """A multipart form and the model that it names, at `begin` to `end` of the body."""

    model: str
    body: bytes
    begin: int
    end: int

    def body_for(self, served: str) -> bytes:
        if served == self.model:
            return self.body
        return self.body[: self.begin] + served.encode() + self.body[self.end :]


ModelCall = JsonCall | FormCall


def model_call(body: bytes, content_type: str) -> ModelCall:
    """Which model a body asks for. ApiError 400 says what is wrong with a body that does not say it."""
    if not body:
        raise ApiError(400, "empty_body", "The request has no body; send JSON with a `model`.")
    if content_type[:19].lower() == "multipart/form-data":
        return _form_call(body, content_type)
    try:
        document = json.loads(body)
    except RecursionError:
        raise ApiError(400, "invalid_json", "The request body is JSON nested too deeply.") from None
    except ValueError as error:  # also an int of more than 4,300 digits, and bytes that are not UTF-8
        raise ApiError(400, "invalid_json", f"The request body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise ApiError(400, "invalid_json", "The request body must be a JSON object with a `model`.")
    return JsonCall(_checked_name(document.get("model")), body, document)


def _checked_name(model: object) -> str:
    if model is None:
        raise ApiError(400, "missing_model", "The request names no model; add `model`.", param="model")
    if not isinstance(model, str):
        raise ApiError(400, "invalid_model", "`model` must be a string.", param="model")
    if not model.strip():
        raise ApiError(400, "missing_model", "`model` is empty.", param="model")
    return model


def _form_call(body: bytes, content_type: str) -> FormCall:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ApiError(400, "invalid_form", "The multipart form's content type names no boundary.")
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    # The first delimiter opens the body; every other one stands at the start of a line.
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    for _ in range(FORM_PARTS_MAX):
        head = at + len(delimiter)
        head_end = body.find(b"\r\n\r\n", head)
        next_at = body.find(b"\r\n" + delimiter, head)
        if head_end < 0 or next_at < head_end:
            break
        if _FORM_FIELD_MODEL.search(body[head:head_end].replace(b"\r", b"")):
            begin, end = head_end + 4, next_at
            model = body[begin:end].decode("utf-8", "replace")
            return FormCall(_checked_name(model), body, begin, end)
        at = next_at + 2
    raise ApiError(400, "missing_model", "The form has no field `model`.", param="model")
