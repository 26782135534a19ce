"""Counters of `saver.stats()` as OpenTelemetry metrics, seen through the SDK."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from langgraph_checkpoint_cached import telemetry
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.telemetry import SCOPE, instrument


class Saver:
    """As much of one as is looked at."""

    def __init__(self) -> None:
        self.counters = Stats()
        self._engine = SimpleNamespace(stats=self.counters)


def saver() -> Any:
    return Saver()


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], float]]]:
    """Attributes and value of every point, by the metric's name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name.removeprefix(f"{SCOPE}."): [(dict(p.attributes), p.value) for p in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_every_counter_and_gauge_is_a_metric(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    one = saver()
    names = [name for kind in ("counter", "gauge") for name, _ in one.counters.described(kind)]
    instrument(one, provider, {"service": "chat"})
    for value, name in enumerate(names, 1):
        setattr(one.counters, name, value)
    found = collected(reader)
    for value, name in enumerate(names, 1):
        assert found[name] == [({"service": "chat"}, value)]
    one.counters.hits += 100
    assert collected(reader)["hits"] == [({"service": "chat"}, 101)]


def test_times_are_counters_with_the_buckets_of_prometheus(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    one = saver()
    instrument(one, provider, {})
    for seconds in (0.0002, 0.002, 100):
        one.counters.get_hit.record(seconds)
    one.counters.redis_exchange.record(0.5)
    one.counters.group_sizes.record(3)
    one.counters.group_sizes.record(600)
    found = collected(reader)
    hit = {"tier": "saver", "operation": "get_tuple", "outcome": "hit"}
    assert (hit, 3) in found["calls"]
    assert (hit, pytest.approx(100.0022)) in found["call.time"]
    assert ({"tier": "redis", "operation": "exchange"}, 1) in found["calls"]
    buckets = {a["le"]: value for a, value in found["call.buckets"] if a.items() >= hit.items()}
    assert [buckets[le] for le in ("0.0001", "0.00025", "0.001", "0.0025", "10.0", "+Inf")] == [0, 1, 1, 2, 2, 3]
    assert found["groups"] == [({}, 2)]
    assert found["group.writes"] == [({}, 603)]
    sizes = {a["le"]: value for a, value in found["group.buckets"]}
    assert [sizes[le] for le in ("2", "4", "512", "+Inf")] == [0, 1, 1, 2]


def test_savers_have_own_series_that_end_with_them(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    one, other = saver(), saver()
    one.counters.hits, other.counters.hits = 1, 2
    instrument(one, provider)
    instrument(one, provider)
    instrument(other, provider)
    points = collected(reader)["hits"]
    assert sorted(value for _, value in points) == [1, 2]
    assert len({attributes["saver"] for attributes, _ in points}) == 2
    view = copy.copy(other)  # as `with_allowlist` makes them
    del one, other
    gc.collect()
    assert [value for _, value in collected(reader)["hits"]] == [2]
    del view
    gc.collect()
    assert not any(collected(reader).values())


def test_the_global_provider_may_be_set_later() -> None:
    """In a process of its own: it can be set once."""
    program = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.unit.test_telemetry import collected, instrument, saver
one, two, three = saver(), saver(), saver()
one.counters.hits, two.counters.hits, three.counters.hits = 1, 2, 3
instrument(one)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
instrument(two)
instrument(three, metrics.get_meter_provider())
assert sorted(value for _, value in collected(reader)["hits"]) == [1, 2, 3]
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, telemetry.__name__)
    with pytest.raises(ImportError, match=r"langgraph-checkpoint-cached\[otel\]"):
        __import__(telemetry.__name__)
