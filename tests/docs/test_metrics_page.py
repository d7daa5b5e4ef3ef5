"""docs/metrics.md: its tables are those of a scrape, its alerts name metrics that exist."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

import iproto
from iproto.address import Address
from tests.helpers.harness import serve_process, serving
from tests.helpers.markdown import DOCS, blocks, column, table
from tests.helpers.metrics import get

pytestmark = pytest.mark.checkout


class Scraped(NamedTuple):
    types: dict[str, str]
    labels: dict[str, set[str]]
    samples: set[str]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """What a server of a storage file that has seen some traffic says."""
    with (
        iproto.open_storage(tmp_path_factory.mktemp("scraped") / "storage") as file,
        serving(storage=file.storage, metrics_bind="127.0.0.1:0") as served,
        served.peer() as peer,
    ):
        served.server.file_watch = file.watch
        assert peer.read(0) == ""
        status, text = get(served.server.metrics_address, "/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in types}
    samples = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.add(sample.name)
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name)
            labels[name if name in types else sample.name] |= sample.labels.keys() - {"le"}
    return Scraped(types, labels, samples)


METRIC_SECTIONS = ("Storage", "Connections", "Requests", "Event loop, process, build")


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_metrics_are_those_of_a_scrape(scraped: Scraped) -> None:
    rows = [row for name in METRIC_SECTIONS for row in table("metrics.md", name, "metric")]
    said = {row["metric"]: (row["type"], labels_of(row)) for row in rows}
    assert len(said) == len(rows)
    assert said == {name: (kind, scraped.labels[name]) for name, kind in scraped.types.items()}
    assert all(row["meaning"] for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_metrics_of_workers_are_those_of_a_scrape(scraped: Scraped) -> None:
    rows = table("metrics.md", "Workers", "metric")
    said = {row["metric"]: (row["type"], labels_of(row)) for row in rows}
    with serve_process("--workers", "1") as running:
        host, port = running.metrics.removeprefix("http://").split(":")
        status, text = get(Address(host, int(port)), "/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert types.keys() - scraped.types.keys() == said.keys()
    assert {name: (types[name], {"worker"}) for name in said} == said


def labels_of(row: dict[str, str]) -> set[str]:
    return set(re.findall(r"\w+", row["labels"]))


def test_the_reasons_of_closing_are_those_there_are() -> None:
    assert column("metrics.md", "Connections", "reason") == [
        reason.name.lower() for reason in iproto.CloseReason
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the process metrics are read from /proc")
def test_the_alerts_are_about_metrics_that_exist(scraped: Scraped) -> None:
    (rules,) = (b.text for b in blocks(DOCS / "metrics.md") if "alert:" in b.text)
    of_workers = {row["metric"] for row in table("metrics.md", "Workers", "metric")}
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
    assert len(expressions) == rules.count("- alert:")
    for expression in expressions:
        assert expression.count("(") == expression.count(")")
        used = set(re.findall(r"\b(?:active|change|iproto|process|storage)_\w+", expression))
        assert used <= scraped.samples | of_workers
        assert used or expression.startswith("up{")
    for code in re.findall(r'code="(\w+)"', rules):
        assert code in iproto.ReturnCode.__members__
    for reason in re.findall(r'reason="(\w+)"', rules):
        assert reason.upper() in iproto.CloseReason.__members__
