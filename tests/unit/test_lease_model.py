"""The protocol of write-behind holds in its model, and every rule of it is needed."""

from __future__ import annotations

import lease_model as model
import pytest

VIOLATED_AT = {
    "row": 1,
    "bypass": 1,
    "position": 19,
    "no-gaps": 9709,
    "token": 43,
    "incarnation": 1262,
    "known": 4,
    "holder": 1061,
    "fence": 39,
    "flush-first": 44,
    "ask-row": 163,
    "close-first": 36,
    "grace": 205,
    "memory": 40,
    "end": 2692,
    "degraded": 19,
    "same-generation": 407,
    "expired-delete": 3234,
    "void": 597,
    "delete-row": 45,
    "tidy": 6017,
}


def test_no_interleaving_violates_the_promises() -> None:
    counts: dict[str, int] = {}
    for seed in range(300):
        for what, count in model.explore(seed).items():
            counts[what] = counts.get(what, 0) + count
    assert all(counts.values()), counts  # it says something only if all of it happened


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `lease_model.py --drop RULE`."""
    model.explore(VIOLATED_AT[rule])
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
