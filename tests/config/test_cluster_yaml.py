"""`cluster.yaml` lets nobody in: Ray's token everywhere, the dashboard at home, a first API key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parent.parent.parent / "cluster.yaml"


@pytest.fixture
def cluster() -> Any:
    return yaml.safe_load(FILE.read_text())


def test_ray_asks_for_its_token_on_every_machine(cluster: Any) -> None:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    joining = [command for command in commands if re.search(r"\bray start\b|\brayscheduler up\b", command)]
    assert len(joining) == 3
    for command in joining:
        told, _, started = command.partition("RAY_AUTH_MODE=token")
        assert "export" in told, command
        assert re.search(r"\bray start\b|\brayscheduler up\b", started), command
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_the_dashboard_stays_at_home(cluster: Any) -> None:
    (head,) = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head


def test_other_machines_are_answered_with_a_key_that_is_on_the_head(cluster: Any) -> None:
    (up,) = [command for command in cluster["head_start_ray_commands"] if "rayscheduler up" in command]
    file = re.search(r"--admin-key-file (\S+)", up)
    assert file is not None
    assert file.group(1) in cluster["file_mounts"]
    assert " --detach" in " ".join(up.split())


def test_its_secrets_are_not_committed(cluster: Any) -> None:
    ignored = (FILE.parent / ".gitignore").read_text().splitlines()
    for remote in ("~/.ray/auth_token", "~/admin.key"):
        assert f"/{cluster['file_mounts'][remote]}" in ignored
