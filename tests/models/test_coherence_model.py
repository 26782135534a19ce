"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import pytest

from tests.models import coherence_model as model

VIOLATED_AT = {
    "fence": 122,
    "fill_token": 111,
    "generation": 174,
    "restart": 646,
    "promotion": 745,
    "purge-expired": 916,
    "base": 4079,
    "others": 29207,
    "order": 275399,
    "early": 97,
    "confirm": 236,
    "stale_threads": 3038,
    "invalidate-first": 40985,
    "marks": 39640,
    "watch": 1236,
    "names": 192,
    "shared": 2526,
    "given-up": 90,
    "gone": 2999,
    "unknown": 1228,
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
