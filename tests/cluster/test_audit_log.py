"""Who changed what by hand: each change is one line, before its answer goes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayscheduler.cluster.audit_log import SUBJECTS, AuditLog, OperatorCalls
from rayscheduler.cluster.key_book import KeyCalls
from rayscheduler.cluster.keys import digest_of
from rayscheduler.config.service import AuditLogSection, config_from_json, config_from_text

SECRET = "s" * 40


class Operated(OperatorCalls):
    """An allocator that answers as it is told."""

    def __init__(self) -> None:
        self.audit = self._audit = AuditLog()
        self.answer: dict[str, Any] = {"ok": True, "message": "done"}

    async def load(self, model: str, wait: bool) -> dict[str, Any]:
        if wait:
            await asyncio.Event().wait()
        return self.answer

    async def pin(self, model: str, pinned: bool) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    async def create_key(self, settings: dict[str, Any], replace: bool) -> dict[str, Any]:
        return self.answer

    async def deploy(self, config_json: str) -> dict[str, Any]:
        return self.answer


@pytest.fixture
def allocator() -> Iterator[Operated]:
    made = Operated()
    yield made
    made.audit.open(None)


def section(path: Path, **more: Any) -> AuditLogSection:
    return AuditLogSection(path=str(path), **more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sizes_bytes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


async def test_each_change_is_there_when_it_is_answered(allocator: Operated, tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    allocator.audit.open(section(path))
    assert await allocator.operate("key ops", "load", ["m", False]) == allocator.answer
    entry = lines(path)[0]
    assert entry.pop("time").endswith("Z")
    assert entry == {"by": "key ops", "verb": "load", "subject": "m", "outcome": "ok", "message": "done"}
    allocator.answer = {"error": {"code": "never_fits", "status": 422, "message": "too big", "retry_after_s": None}}
    await allocator.operate("local operator", "load", ["m", False])
    assert [lines(path)[1][key] for key in ("by", "outcome", "message")] == ["local operator", "never_fits", "too big"]


async def test_what_fails_and_what_is_given_up_is_there_too(allocator: Operated, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    allocator.audit.open(section(path))
    with pytest.raises(ZeroDivisionError):
        await allocator.operate("key ops", "pin", ["m", False])
    waiting = asyncio.create_task(allocator.operate("key ops", "load", ["m", True]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    told = [(line["verb"], line["outcome"], line["message"]) for line in lines(path)]
    assert told == [("unpin", "ZeroDivisionError", "a bug"), ("load", "CancelledError", "")]


async def test_what_comes_before_the_service_file_is_written_with_it(allocator: Operated, tmp_path: Path) -> None:
    await allocator.operate("local operator", "create_key", [{"name": "admin", "digest": digest_of(SECRET)}, True])
    await allocator.operate("local operator", "deploy", ["{}"])
    allocator.audit.open(section(tmp_path / "audit.jsonl"))
    told = lines(tmp_path / "audit.jsonl")
    changes = [(line["verb"], line["subject"]) for line in told]
    assert changes == [("create_key", "admin"), ("deploy", "the service file")]
    assert digest_of(SECRET) not in (tmp_path / "audit.jsonl").read_text()


async def test_another_service_file_may_log_elsewhere_or_nowhere(allocator: Operated, tmp_path: Path) -> None:
    for target in (tmp_path / "a", tmp_path / "b"):
        allocator.audit.open(section(target))
        await allocator.operate("key ops", "load", ["m", False])
    allocator.audit.open(None)
    await allocator.operate("key ops", "load", ["m", False])
    assert (len(lines(tmp_path / "a")), len(lines(tmp_path / "b"))) == (1, 1)


async def test_it_rotates(allocator: Operated, tmp_path: Path) -> None:
    allocator.audit.open(section(tmp_path / "audit.jsonl", file_size=400, keep=2))
    for number in range(20):
        await allocator.operate("key ops", "load", [f"m{number}", False])
    sizes = sizes_bytes(tmp_path)
    assert list(sizes) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert max(sizes.values()) <= 400
    assert lines(tmp_path / "audit.jsonl")[-1]["subject"] == "m19"


async def test_only_changes_can_be_asked_for(allocator: Operated) -> None:
    with pytest.raises(KeyError):
        await allocator.operate("key ops", "_spawn", [])
    assert {name for name in vars(KeyCalls) if name.endswith("_key")} <= set(SUBJECTS)


def test_the_section_is_kept_with_the_service_file() -> None:
    text = "audit_log: {path: /var/log/audit.jsonl, keep: 3}\nmodels: []\n"
    config = config_from_text(text)
    assert config.audit_log is not None
    assert config_from_json(config.to_json()).audit_log == config.audit_log
