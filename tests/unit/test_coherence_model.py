"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import coherence_model as model
import pytest

VIOLATED_AT = {
    "fence": 4,
    "ticket": 85,
    "generation": 49,
    "restart": 49,
    "promotion": 49,
    "purge-expired": 36,
    "base": 359,
    "others": 43930,
    "order": 20755,
    "early": 5,
    "confirm": 773,
    "watch": 4,
    "names": 0,
}


def test_no_interleaving_violates_the_promises() -> None:
    for seed in range(1500):
        model.explore(seed)


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `coherence_model.py --drop RULE`."""
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
