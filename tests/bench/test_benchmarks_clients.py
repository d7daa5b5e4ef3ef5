"""The benchmarks' programs, in their smallest size: that they run, and what they write."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.harness import serving
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.slow,
    pytest.mark.xdist_group("benchmarks"),  # they build the same programs in the same place
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("make") is None or shutil.which("cc") is None,
        reason="the load and the bare server are built for Linux, with make and cc",
    ),
]


def run(name: str, folder: Path, *options: str) -> tuple[Any, str]:
    """Runs a program of benchmarks/peers; what it wrote as JSON, and what it printed."""
    path = folder / "result.json"
    command = [sys.executable, "-m", f"benchmarks.peers.{name}", "--json", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.fixture
def client_load() -> Any:
    """Imported only here: where an installed wheel is tested, there are no benchmarks."""
    return importlib.import_module("benchmarks.peers.clients.load")


def check_summary(summary: Any, only: float) -> None:
    """Of a single round."""
    assert summary["min"] == summary["median"] == summary["max"] == only


def test_clients_are_compared_on_their_own_servers_and_left_out_by_name(tmp_path: Path) -> None:
    document, printed = run(
        "clients",
        tmp_path,
        *("--clients", "iproto,redis-py", "--tasks", "3"),
        *("--rounds", "1", "--duration", "0.02", "--warmup", "0.01"),
    )
    results = document["results"]
    assert document["problems"] == []
    measured = {(r["client"], r["server"], r["call"], r["size"], r["in_flight"]) for r in results}
    ours = {
        ("iproto", server, call, size, in_flight)
        for server in ("iproto", "c-epoll")
        for call, size, in_flight in (("read", 1, 3), ("read_many", 100, 1), ("read_many", 1000, 1))
    }
    redis = {
        ("redis-py", "redis", call, size, in_flight)
        for call, size, in_flight in (
            ("get", 1, 3),
            ("pipeline", 100, 1),
            ("pipeline", 1000, 1),
            ("mget", 1000, 1),
        )
    }
    left_out = "redis-py: " in document["facts"]["left out"]
    assert measured == (ours if left_out else ours | redis)
    assert [goal["times"] for goal in document["goals"]] == ([] if left_out else [20.0])
    for result in results:
        (only,) = result["rounds"]
        for name in ("values_per_second", "cpu_us_per_value", "client_cpu"):
            assert only[name] > 0
            check_summary(result[name], only[name])
        assert f"| {result['client']} {result['call']}" in printed


@pytest.mark.parametrize(("call", "size"), [("read", 1), ("read_many", 100)])
def test_threads_share_a_blocking_client(client_load: Any, call: str, size: int) -> None:
    values = [client_load.value_of(slot, 8) for slot in range(client_load.SLOTS)]
    with serving() as served:
        options = argparse.Namespace(
            client="iproto-blocking",
            call=call,
            size=size,
            in_flight=2,
            port=served.address.port,
            warmup=0.001,
            duration=0.001,
        )
        result = client_load.in_threads(options, values)
    assert result.values >= 2 * size
    assert result.values % size == 0
    assert result.seconds > 0


def test_the_footprint_holds_each_figure_against_its_goal(tmp_path: Path) -> None:
    document, printed = run(
        "footprint",
        tmp_path,
        *("--connections", "20", "--rounds", "1", "--duration", "0.05", "--warmup", "0.01"),
    )
    assert document["problems"] == []
    figures = {(figure["part"], figure["key"]): figure for figure in document["figures"]}
    goals = {place: figure["goal"] for place, figure in figures.items() if figure["goal"]}
    wanted = {
        ("start", "one"): 250,
        ("start", "one_cpu"): 250,
        ("start", "two"): 250,
        ("start", "two_cpu"): 250,
        ("import", "client"): 60,
        ("import", "client_cpu"): 60,
        ("import", "async_client"): 60,
        ("import", "async_client_cpu"): 60,
        ("memory", "user"): 8,
        ("metrics", "by_cpu"): 0.95,
        ("function", "by_cpu"): 5,
    }
    if "function: " in document["facts"]["left out"]:
        del wanted["function", "by_cpu"]
    assert goals == wanted
    for figure in figures.values():
        (only,) = figure["rounds"]
        check_summary(figure, only)
        median, goal = figure["median"], figure["goal"]
        if goal is None:
            assert figure["met"] is None
        else:
            assert figure["met"] is (median >= goal if figure["at_least"] else median <= goal)
        assert figure["name"] in printed


def test_a_client_that_reads_another_value_fails(client_load: Any) -> None:
    work = client_load.Work(client_load.Call(run=str), 1, ["a"] * client_load.SLOTS)
    with pytest.raises(ValueError, match="another reply than was written: 'b'"):
        work.check(0, "b")
