"""The comparison of TLS with Redis, in a tiny version and without Redis: each figure is there."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.peers.common.running import running
from benchmarks.peers.tls import __main__ as program

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="CPU time and memory are those of /proc"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate"),
]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for name, value in (("HANDSHAKES", 3), ("STORM", 10), ("CONNECTIONS", 3)):
        monkeypatch.setattr(program, name, value)


def test_every_figure_of_ours_is_measured(tmp_path: Path) -> None:
    ours, _ = program.contestants(*program.make_certificate(str(tmp_path)))
    figures: dict[str, dict[str, list[float]]] = {}
    options = argparse.Namespace(duration=0.05, idle=3)
    with running(ours.server, []) as started:
        program.measure(started, ours.kind, figures, options)
    assert {what: len(by_name["iproto"]) for what, by_name in figures.items()} == {
        "idle connection, KiB": 1,
        **{f"requests by CPU second, depth {depth}": 1 for depth in program.DEPTHS},
        "CPU of a handshake, us": 1,
        "p99 beside 10 handshakes, ms": 1,
    }
    assert figures["requests by CPU second, depth 1"]["iproto"][0] > 100
