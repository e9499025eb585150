"""What can go wrong and reach people: one tree of errors, each knowing its HTTP status and its code.

    RayschedulerError              message, http_status, code
    ├── ConfigError                a file is wrong: prints one line, "file:line: what; fix"
    ├── EngineError                an engine cannot serve a model
    │   ├── EngineMissing          its program is not installed
    │   ├── EngineFailed           it ended or stayed silent while loading; carries the end of its log
    │   └── SourceError            the model's file is missing, truncated or not one
    ├── RequestRejected            a request ended without a lease, for a reason of SCENARIOS.md
    ├── AllocatorUnavailable       the allocator actor is not there (yet, or any more)
    ├── KeyNeeded                  other machines would be answered, and no API key was made
    └── VersionMismatch            a part of the installation does not go with the others

Rules of this file: a message says what happened and what to do about it. Errors cross process borders
through Ray, so each survives pickling with all that it carries. Nothing is imported from the package.
"""

from __future__ import annotations

from typing import Any


class RayschedulerError(Exception):
    """An error made for people. `http_status` and `code` are what an HTTP client sees of it."""

    def __init__(self, message: str, http_status: int = 500, code: str = "internal") -> None:
        super().__init__(message)
        self.message = message
        self.http_status = http_status
        self.code = code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is rebuilt by default from `args` alone, which fits no subclass with its own arguments.
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


def _rebuilt(kind: type[RayschedulerError], args: tuple[Any, ...], carried: dict[str, Any]) -> RayschedulerError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(carried)
    return error


class ConfigError(RayschedulerError):
    """A configuration or scenario file is wrong. `line` counts from 1; None: the file as a whole."""

    def __init__(self, file: str, line: int | None, what: str, fix: str) -> None:
        place = file if line is None else f"{file}:{line}"
        told = f"{what}; {fix}" if fix else what
        super().__init__(_one_line(f"{place}: {told}"), http_status=400, code="bad_config")
        self.file = file
        self.line = line
        self.what = what
        self.fix = fix


class EngineError(RayschedulerError):
    """An engine cannot serve a model."""

    def __init__(self, message: str, http_status: int = 503, code: str = "engine_error") -> None:
        super().__init__(message, http_status, code)


class EngineMissing(EngineError):
    """The engine's program is not installed here; the message says how to install it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="engine_missing")


class EngineFailed(EngineError):
    """The engine ended, or did not become ready in time. `log_tail`: the last lines that it wrote."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message, code="load_failed")
        self.log_tail = log_tail

    def __str__(self) -> str:
        return f"{self.message}\n{self.log_tail}" if self.log_tail else self.message


class SourceError(EngineError):
    """The model's source is missing, truncated, or not what the engine reads."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bad_source")


class RequestRejected(RayschedulerError):
    """A request ended without a lease. `code` and `status` as in SCENARIOS.md."""

    def __init__(self, code: str, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message, http_status=status, code=code)
        self.status = status
        self.retry_after_s = retry_after_s


class AllocatorUnavailable(RayschedulerError):
    """The allocator actor cannot be reached."""

    def __init__(self, message: str, retry_after_s: int | None = 1) -> None:
        super().__init__(message, http_status=503, code="allocator_unavailable")
        self.retry_after_s = retry_after_s


class KeyNeeded(RayschedulerError):
    """The service would answer other machines without asking who they are."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"--host {host} answers other machines, and there is no API key yet: name a file that holds the first one "
            "with --admin-key-file FILE (make it with: openssl rand -hex 32 > FILE), or set RAYSCHEDULER_ADMIN_KEY",
            http_status=400,
            code="key_needed",
        )


class VersionMismatch(RayschedulerError):
    """Two parts of the installation do not go together, or one is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="version_mismatch")


def _one_line(text: str) -> str:
    """Control characters (line breaks, escape codes) shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
