"""No process serves what another has overwritten, in the model of who may serve; every rule of it is needed."""

from __future__ import annotations

import pytest

from tests.models import serving_model as model

VIOLATED_AT = {
    "right": 51,
    "from-send": 12435,
    "invalidated": 1411,
    "epoch": 164,
    "registered": 2460,
    "term": 46249,
    "active": 245,
    "emptied": 53353,
    "writer": 18098,
    "wait": 146,
    "answer": 1229,
    "beats": 78439,
    "announce": 17930,
}


def test_no_interleaving_serves_overwritten_state() -> None:
    for seed in range(1500):
        model.explore(seed)


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_old_state_is_served(rule: str) -> None:
    """The seeds were found with `serving_model.py --drop RULE`."""
    model.explore(VIOLATED_AT[rule])
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
