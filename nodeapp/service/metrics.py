"""Prometheus metrics of one process: a private registry, built in main.py and passed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

LATENCY_BUCKETS_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Named `fabstir_<process>_<what>_<unit>[_total]`; labels must be bounded.

    `common` are labels that every sample gets.
    """

    def __init__(self, process: str, common: Mapping[str, str] | None = None) -> None:
        self._common = dict(common or {})
        self._prefix = f"fabstir_{process.replace('-', '_')}"
        self._registry = CollectorRegistry()
        ProcessCollector(namespace=self._prefix, registry=self._registry)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        """A count that only rises."""
        return Counter(f"{self._prefix}_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        """A value that goes both ways."""
        return Gauge(f"{self._prefix}_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        """A distribution of seconds."""
        return Histogram(
            f"{self._prefix}_{name}",
            text,
            labels,
            registry=self._registry,
            buckets=LATENCY_BUCKETS_SECONDS,
        )

    def render(self) -> bytes:
        """The Prometheus text form."""
        if not self._common:
            return generate_latest(self._registry)
        labelled = CollectorRegistry()
        labelled.register(_Labelled(self._registry, self._common))
        return generate_latest(labelled)


class _Labelled(Collector):
    def __init__(self, registry: CollectorRegistry, labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._labels})
                for sample in metric.samples
            ]
            yield metric
