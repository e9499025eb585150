"""The shape of the code base, checked: layers, purity of the core, sizes, names.

Rules of this file: it reads source, it runs none of it (but import-linter, which reads it too).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rayscheduler"
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 80

# The core computes: it has no need of anything but data types and pure functions.
CORE_MAY_IMPORT = frozenset(
    {"__future__", "abc", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "heapq"}
    | {"itertools", "math", "operator", "types", "typing"}
)
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?|base)(_|$)")
# Bytes are `_bytes`, times `_ms` or `_s`, Ray's resources `_mib`. (A megabyte is one of two sizes.)
OTHER_UNITS = re.compile(r"[a-z0-9]_(kb|mb|gb|ns|usecs?|msecs?|millis(ecs?|econds)?|secs?|seconds|mins|minutes)$")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def source_files(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found, f"nothing under {folders}: does this test still look in the right place?"
    return found


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def names_given(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that the file itself names: fields, variables, arguments, functions."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def test_import_contracts_hold() -> None:
    """The layers and the core's purity, as pyproject.toml states them."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_imports_only_data_types() -> None:
    """A list of what is allowed, so that a new way of doing I/O needs nobody to think of it."""
    wrong = [
        f"{short(path)}: {module}"
        for path in source_files("rayscheduler/core")
        for module in imported_modules(tree_of(path))
        if module.split(".")[0] not in CORE_MAY_IMPORT and not module.startswith("rayscheduler.core")
    ]
    assert wrong == []


def test_the_core_opens_nothing_and_prints_nothing() -> None:
    """Builtins need no import, so import-linter cannot see them; `hash` and `id` differ from run to run."""
    wrong = [
        f"{short(path)}:{node.lineno}: {node.func.id}()"
        for path in source_files("rayscheduler/core")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "exec", "eval", "__import__", "hash", "id"}
    ]
    assert wrong == []


def test_files_can_be_read_in_a_sitting() -> None:
    files = source_files("rayscheduler", "deployments", "tests")
    sizes = {short(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in sizes.items() if lines > FILE_LINES_MAX} == {}


def test_functions_fit_on_a_screen() -> None:
    wrong = {}
    for path in source_files("rayscheduler", "deployments"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    wrong[f"{short(path)}:{node.name}"] = lines
    assert wrong == {}


def test_modules_say_what_they_are_for() -> None:
    """Every module opens with its role; an empty `__init__.py` has nothing to say."""
    wrong = [
        short(path)
        for path in source_files("rayscheduler", "deployments", "tests")
        if tree_of(path).body and not ast.get_docstring(tree_of(path))
    ]
    assert wrong == []


def test_names_say_what_a_thing_does() -> None:
    """No `utils`, `helpers`, `manager`, `base`: they say where code was put, not what it is."""
    modules = [
        short(path)
        for path in source_files("rayscheduler", "deployments", "tests")
        if FORBIDDEN_NAMES.search(path.stem) or FORBIDDEN_NAMES.search(path.parent.name)
    ]
    classes = [
        f"{short(path)}:{node.name}"
        for path in source_files("rayscheduler", "deployments")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and re.search(r"(Utils?|Helpers?|Manager|Base)(?![a-z])", node.name)
    ]
    assert modules + classes == []


def test_units_have_one_spelling_and_come_last() -> None:
    wrong = [
        f"{short(path)}:{line}: {name}"
        for path in source_files("rayscheduler", "deployments")
        for line, name in names_given(tree_of(path))
        if OTHER_UNITS.search(name.lower())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "refused"),
    [("utils", True), ("base_engine", True), ("my_helpers", True), ("database", False), ("baseline", False)],
)
def test_the_name_rule_itself(name: str, refused: bool) -> None:
    assert bool(FORBIDDEN_NAMES.search(name)) is refused


@pytest.mark.parametrize(
    ("name", "refused"),
    [("load_seconds", True), ("size_mb", True), ("load_ms", False), ("lent_mib", False), ("columns", False)],
)
def test_the_unit_rule_itself(name: str, refused: bool) -> None:
    assert bool(OTHER_UNITS.search(name)) is refused
