"""The protocol of write-behind holds in its model, and every rule of it is needed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.models import lease_model as model

VIOLATED_AT = {
    "row": 10,
    "bypass": 5,
    "position": 24,
    "no-gaps": 22109,
    "token": 129,
    "server_epoch": 950,
    "known": 1,
    "holder": 1357,
    "fence": 289,
    "flush-first": 4,
    "ask-row": 390,
    "close-first": 45,
    "grace": 1,
    "memory": 69,
    "end": 258,
    "degraded": 2,
    "same-generation": 1840,
    "expired-delete": 3854,
    "invalidate": 26,
    "delete-row": 74,
    "stale_thread": 133,
    "remove_ended_journals": 2283,
}


def test_no_interleaving_violates_the_promises() -> None:
    counts: Counter[str] = Counter()
    for seed in range(300):
        counts.update(model.explore(seed))
    assert all(counts.values()), counts  # it says something only if all of it happened


@pytest.mark.parametrize("rule", model.RULES)
def test_without_any_one_rule_a_promise_is_broken(rule: str) -> None:
    """The seeds were found with `lease_model.py --drop RULE`."""
    model.explore(VIOLATED_AT[rule])
    with pytest.raises(AssertionError):
        model.explore(VIOLATED_AT[rule], rule)
