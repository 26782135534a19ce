"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import pytest

from tests.models import coherence_model as model

VIOLATED_AT = {
    "fence": 16,
    "fill_token": 717,
    "generation": 185,
    "restart": 3688,
    "promotion": 6213,
    "overdue": 569,
    "settle": 15412,
    "settle-first": 235976,
    "deadline": 1578,
    "identity": 2316,
    "identity-write": 37,
    "standby": 76,
    "parent": 37,
    "base": 887,
    "others": 58474,
    "order": 2197660,
    "early": 1,
    "confirm": 142,
    "stale_threads": 235,
    "invalidate-first": 32271,
    "marks": 285720,
    "watch": 294,
    "names": 543,
    "shared": 677,
    "given-up": 3473,
    "gone": 682,
    "unknown": 212,
}


def test_no_interleaving_violates_the_promises() -> None:
    for seed in range(1500):
        model.explore(seed)


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `coherence_model.py --drop RULE`."""
    model.explore(VIOLATED_AT[rule])
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
