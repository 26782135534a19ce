"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import coherence_model as model
import pytest

VIOLATED_AT = {
    "fence": 18,
    "ticket": 50,
    "generation": 271,
    "restart": 271,
    "promotion": 271,
    "purge-expired": 1887,
    "base": 33863,
    "others": 37396,
    "turns": 11191,
    "early": 41,
    "confirm": 55,
}


def test_no_interleaving_violates_the_promises() -> None:
    for seed in range(1500):
        model.explore(seed)


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `coherence_model.py --drop RULE`."""
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
