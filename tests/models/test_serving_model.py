"""No process serves what another has overwritten, in the model of who may serve; every rule of it is needed."""

from __future__ import annotations

import pytest

from tests.models import serving_model as model

VIOLATED_AT = {
    "right": 51,
    "from-send": 16877,
    "invalidated": 1411,
    "epoch": 329,
    "registered": 3393,
    "term": 85817,
    "active": 2460,
    "emptied": 53353,
    "writer": 14467,
    "wait": 54,
    "answer": 453,
    "said": 23414,
    "begin": 21562,
    "beats": 22727,
    "announce": 4253,
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
