"""OpenTelemetry metrics with the numbers of `saver.stats()`: needs `langgraph-checkpoint-cached[otel]`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from itertools import accumulate, count
from weakref import WeakKeyDictionary

from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.stats import Histogram, Stats

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
except ImportError as exc:
    raise ImportError(
        "langgraph_checkpoint_cached.telemetry needs opentelemetry-api: "
        "pip install 'langgraph-checkpoint-cached[otel]'"
    ) from exc

SCOPE = "langgraph_checkpoint_cached"

Attributes = Mapping[str, str]
Read = Callable[[Stats], "Iterable[tuple[float, Attributes]]"]


class InstrumentedSavers:
    """Savers that one provider's instruments report. They are not kept alive by that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instrumented = False
        self._attributes: WeakKeyDictionary[Stats, Attributes] = WeakKeyDictionary()

    def add(self, stats: Stats, attributes: Attributes | None) -> bool:
        """Add a saver. Returns whether it is the first one ever: then there are no instruments yet."""
        with self._lock:
            known = self._attributes.get(stats) or {"saver": str(next(_numbers))}
            self._attributes[stats] = known if attributes is None else dict(attributes)
            first, self._instrumented = not self._instrumented, True
            return first

    def observed(self, read: Read) -> Callable[[CallbackOptions], list[Observation]]:
        """Return the callback of an instrument, which runs when metrics are collected."""

        def observe(_: CallbackOptions) -> list[Observation]:
            with self._lock:
                savers = list(self._attributes.items())
            return [
                Observation(value, {**attributes, **more})
                for stats, attributes in savers
                for value, more in read(stats)
            ]

        return observe


_numbers = count(1)
_globally = InstrumentedSavers()
_by_provider: WeakKeyDictionary[MeterProvider, InstrumentedSavers] = WeakKeyDictionary()


def instrument(
    saver: CachedPostgresSaver,
    meter_provider: MeterProvider | None = None,
    attributes: Attributes | None = None,
) -> None:
    """Report what the saver counts whenever metrics are collected, as long as the saver or a copy of it exists.

    Each counter and gauge of `saver.stats()` is a metric of that name, after `langgraph_checkpoint_cached.`. Times
    are counters too: `call.time` in seconds, `calls`, and `call.buckets`, with the attributes `tier` (`redis`,
    `postgres` or `saver`), `operation`, for reads `outcome`, and for buckets `le`: the calls that took up to so
    many seconds, as in Prometheus. A histogram of the API would have to be updated with each call; counters cost
    nothing beyond what `stats()` needs anyway. `group.buckets` is the same for the number of `group.writes` in
    each of the `groups`.

    May be called from any thread, before the global provider is set, and again.

    Args:
        saver: A saver of either kind.
        meter_provider: The global one by default.
        attributes: Attributes of all metrics of this saver; `saver` and a number by default. If a process has
            several savers, their attributes must differ.
    """
    provider = metrics.get_meter_provider()
    if meter_provider is None or meter_provider is provider:
        savers = _globally
    else:
        provider, savers = meter_provider, _by_provider.setdefault(meter_provider, InstrumentedSavers())
    if savers.add(saver._engine.stats, attributes):
        _make_instruments(provider.get_meter(SCOPE, version("langgraph-checkpoint-cached")), savers)


def _make_instruments(meter: Meter, savers: InstrumentedSavers) -> None:
    template = Stats()
    for name, about in template.described("counter"):
        meter.create_observable_counter(
            f"{SCOPE}.{name}", [savers.observed(_value(name))], about["unit"], about["description"]
        )
    for name, about in template.described("gauge"):
        meter.create_observable_gauge(
            f"{SCOPE}.{name}", [savers.observed(_value(name))], about["unit"], about["description"]
        )
    for name, unit, description, read in (
        ("call.time", "s", "Seconds that calls took.", _call_times),
        ("calls", "{call}", "Calls that were timed.", _calls),
        ("call.buckets", "{call}", "Calls that took up to `le` seconds.", _call_buckets),
        ("groups", "{group}", "Groups of writes, each a transaction.", lambda s: [(s.group_sizes.count, {})]),
        ("group.writes", "{write}", "Writes in those groups.", lambda s: [(s.group_sizes.sum, {})]),
        ("group.buckets", "{group}", "Groups of up to `le` writes.", lambda s: _buckets(s.group_sizes, {})),
    ):
        meter.create_observable_counter(f"{SCOPE}.{name}", [savers.observed(read)], unit, description)


def _value(name: str) -> Read:
    return lambda stats: [(getattr(stats, name), {})]


def _call_times(stats: Stats) -> Iterable[tuple[float, Attributes]]:
    return [(h.sum, place) for h, place in _timed(stats)]


def _calls(stats: Stats) -> Iterable[tuple[float, Attributes]]:
    return [(h.count, place) for h, place in _timed(stats)]


def _call_buckets(stats: Stats) -> Iterable[tuple[float, Attributes]]:
    return [bucket for h, place in _timed(stats) for bucket in _buckets(h, place)]


def _timed(stats: Stats) -> list[tuple[Histogram, Attributes]]:
    return [
        (getattr(stats, name), dict(zip(("tier", "operation", "outcome"), about["place"], strict=False)))
        for name, about in stats.described("histogram")
        if about["unit"] == "s"
    ]


def _buckets(histogram: Histogram, attributes: Attributes) -> list[tuple[float, Attributes]]:
    highest = [*map(str, histogram.bounds), "+Inf"]
    return [
        (total, {**attributes, "le": le})
        for le, total in zip(highest, accumulate(list(histogram.buckets)), strict=True)
    ]
