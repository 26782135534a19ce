"""Write-behind loses nothing in its model while a process or Redis has it; every rule of it is needed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.models import write_behind_model as model

VIOLATED_AT = {
    "owner": 323,
    "base": 179,
    "epoch": 33,
    "memory": 4,
    "once": 3,
    "own-row": 1926,
    "dead": 146,
    "locked": 1926,
    "flush-first": 69,
    "open": 298,
    "registered": 3,
    "journal": 3,
    "ask": 3,
    "swept": 160,
    "drop": 184,
    "stale": 23,
    "parent": 16,
    "poison": 72,
    "wake": 121,
    "root": 1371,
    "wake-swept": 97,
    "entry": 130,
    "retain": 50,
    "grace": 190,
    "late": 366,
    "sweep": 135,
}


def test_no_interleaving_loses_acknowledged_writes() -> None:
    counts: Counter[str] = Counter()
    for seed in range(200):
        counts.update(model.explore(seed))
    assert counts.keys() >= {*model.FAULTS, *model.COUNTED}, counts  # it says something only if all of it happened


@pytest.mark.parametrize("rule", VIOLATED_AT)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `write_behind_model.py --drop RULE`; `right`, `beat` and `in-hand` lack one."""
    model.explore(VIOLATED_AT[rule])
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
