"""Scrapes of a server under test."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.harness import PATIENCE, Served

if TYPE_CHECKING:
    from iproto.address import Address

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def get(address: Address | None, path: str) -> tuple[int, str]:
    assert address is not None
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def parse(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def scrape(served: Served) -> Samples:
    status, text = get(served.server.metrics_address, "/metrics")
    assert status == 200
    return parse(text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted(labels.items()))]
