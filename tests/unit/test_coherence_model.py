"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import coherence_model as model
import pytest

VIOLATED_AT = {
    "fence": 73,
    "ticket": 73,
    "generation": 351,
    "restart": 174,
    "promotion": 1032,
    "purge-expired": 608,
    "base": 3023,
    "others": 14156,
    "order": 20989,
    "early": 172,
    "confirm": 256,
}


def test_no_interleaving_violates_the_promises() -> None:
    for seed in range(1500):
        model.explore(seed)


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `coherence_model.py --drop RULE`."""
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
