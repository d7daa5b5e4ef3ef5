"""The comparison with peers, in a tiny version: it runs, and its results are whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

SERVERS = ("iproto", "c-epoll")
LATENCIES = ("p50_us", "p99_us", "p999_us")

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.slow,
    pytest.mark.xdist_group("benchmarks"),  # they build the same programs in the same place
    pytest.mark.skipif(sys.platform != "linux", reason="the load generator is built on epoll"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator needs a C compiler"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make builds the load generator"),
]


def compare(results: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.peers.servers"),
            *("--experiments", "throughput,latency"),
            *("--servers", ",".join(SERVERS)),
            *("--rounds", "1", "--duration", "0.1", "--warmup", "0.02"),
            *("--mix", "mixed", "--depths", "16", "--rates", "1000"),
            *("--json", str(results)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert results.exists(), done.stderr
    return done, json.loads(results.read_text())


def test_a_tiny_comparison(tmp_path: Path) -> None:
    # Other work may have the cores for all of a tenth of a second; hardly five times in a row.
    for _ in range(5):
        done, document = compare(tmp_path / "results.json")
        if not any("no reply within" in problem for problem in document["problems"]):
            break
    assert document["problems"] == []
    assert done.returncode == 0
    experiments: dict[str, list[dict[str, Any]]] = document["experiments"]
    assert list(experiments) == ["throughput", "latency"]
    for name, rows in experiments.items():
        assert f"### {name.capitalize()}" in done.stdout
        assert tuple(row["server"] for row in rows) == SERVERS
        for row in rows:
            (measured,) = row["rounds"]
            assert measured["requests_per_second"] > 0
            assert measured["server_cpu"] > 0
            assert measured["memory_mb"] > 0.1
            percentiles = [measured[latency] for latency in LATENCIES]
            assert percentiles == sorted(percentiles)
            assert percentiles[0] > 0
    for row in experiments["throughput"]:
        assert (row["rate"], row["held"]) == (0, None)
    for row in experiments["latency"]:
        assert (row["rate"], type(row["held"])) == (1000, bool)
        # 121 requests are due in all, warm-up and the very first included, and no more are sent.
        assert row["requests_per_second"] <= 1210
