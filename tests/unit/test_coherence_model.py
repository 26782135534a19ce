"""The protocol holds in its model, and every rule of it is needed."""

from __future__ import annotations

import coherence_model as model
import pytest

VIOLATED_AT = {
    "fence": 11,
    "ticket": 136,
    "generation": 55,
    "restart": 460,
    "promotion": 460,
    "purge-expired": 2296,
    "base": 1186,
    "others": 10159,
    "order": 41679,
    "early": 78,
    "confirm": 528,
    "suspects": 57,
    "void-first": 22896,
    "marks": 13729,
    "watch": 115,
    "names": 173,
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
