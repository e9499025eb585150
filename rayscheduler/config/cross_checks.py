"""What entries of a file can get wrong between them: names used twice, aliases and groups that do not go together.

Rules of this file: each entry alone has been checked already. The first that is wrong is told where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayscheduler.config.adapters import AdapterSection, check_adapters
from rayscheduler.config.models import ModelSection, SchedulerSection
from rayscheduler.config.values import Path, one_of_these, shown
from rayscheduler.config.yaml_lines import Document
from rayscheduler.core.types import PolicyName


def check_unique(document: Document, paths: Sequence[Path], names: Sequence[str], what: str) -> None:
    """ConfigError at the second of two equal names."""
    first: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        if name in first:
            told = f"{what} {shown(name)} stands twice, first in line {document.line(first[name])}"
            raise document.wrong(path, told, "give each a name of its own")
        first[name] = path


def check_groups(document: Document, scheduler: SchedulerSection, names: Sequence[str]) -> None:
    """Under the policy `groups`: members are models, and a model is in one group."""
    if scheduler.policy is not PolicyName.GROUPS:
        return
    known = frozenset(names)
    group_of: dict[str, str] = {}
    for group, section in scheduler.groups.items():
        for index, member in enumerate(section.members):
            path = ("scheduler", "groups", group, "members", index)
            if member not in known:
                what = f"there is no model {shown(member)}"
                raise document.wrong(path, what, one_of_these(member, known, "models"))
            if group_of.setdefault(member, group) != group:
                what = f"the model {shown(member)} is in two groups, {shown(group_of[member])} and {shown(group)}"
                raise document.wrong(path, what, "keep it in one of them")


def check_catalog(
    document: Document, scheduler: SchedulerSection, models: Sequence[ModelSection | AdapterSection]
) -> None:
    """ConfigError for names, aliases and groups that do not go together."""
    names = [model.name for model in models]
    check_unique(document, [("models", i, "name") for i in range(len(models))], names, "the model")
    known = frozenset(names)
    owner: dict[str, str] = {}
    for index, model in enumerate(models):
        for position, alias in enumerate(model.aliases):
            path = ("models", index, "aliases", position)
            if alias in known:
                what = f"the alias {shown(alias)} shadows the model of that name"
                raise document.wrong(path, what, "choose another alias or remove it")
            if alias in owner:
                what = f"the alias {shown(alias)} stands twice, first at the model {shown(owner[alias])}"
                raise document.wrong(path, what, "keep one of them")
            owner[alias] = model.name
    check_groups(document, scheduler, names)
    check_adapters(document, scheduler, models)
