"""The one way in which a run under watch fails: a rule was broken, and this is how."""

from __future__ import annotations


class Violation(AssertionError):
    """`rule` names the broken rule in a word or two, `told` says what happened, with its numbers."""

    def __init__(self, rule: str, told: str) -> None:
        super().__init__(f"[{rule}] {told}")
        self.rule = rule
        self.told = told


def demand(holds: bool, rule: str, told: str) -> None:
    """Raise `Violation` unless `holds`."""
    if not holds:
        raise Violation(rule, told)
