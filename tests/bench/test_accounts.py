"""``iproto bench`` against good servers: the accounts add up, and the report says so."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iproto
from iproto import FuncID
from iproto.bench.batches import Dealer
from iproto.bench.latency import Latency
from tests.helpers.bench import COMMAND, bench, report, requests
from tests.helpers.harness import PATIENCE, serving

if TYPE_CHECKING:
    from pathlib import Path


def test_every_request_is_answered_and_none_is_wrong() -> None:
    with serving() as served:
        served.server.storage.replace(7, b"\xff kept")
        found = report(served.url, "--depth", "8")
        counts = found["requests"]
        assert counts["answered"] > 0
        assert counts == {
            **counts,
            "refused": {},
            "wrong": 0,
            "doubled": 0,
            "lost": 0,
            "resent": 0,
            "unsent": 0,
        }
        # And the server counts the same, but for the look at the slots before.
        assert requests(served, FuncID.STORAGE_READ) == counts["answered"] + 1000
        latency = list(found["latency_ms"].values())[1:]
        assert latency == sorted(latency)
        assert 0 < latency[0] <= latency[-1]
        assert found["problems"] == []


@pytest.mark.parametrize(("place", "dialect"), [("tcp", "mailru"), ("unix", "auto")])
def test_both_dialects_on_both_kinds_of_socket(tmp_path: Path, place: str, dialect: str) -> None:
    bind = f"unix:{tmp_path}/s" if place == "unix" else "127.0.0.1:0"
    with serving(dialect="mailru", bind=bind) as served:
        url = served.url.replace("dialect=mailru", f"dialect={dialect}")
        assert report(url, "--processes", "2")["requests"]["answered"] > 0


def test_a_mix_is_kept_and_the_slots_get_back_what_they_held() -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def repeat(text: str, times: int) -> str:
        return text * times

    with serving(app) as served:
        storage = served.server.storage
        for index in range(1000):
            storage.replace(index, b"own %d" % index)
        mix = ("--mix", "read=5,write=3,ping=1,call=1", "--call", "0x30001", '"ab"', "3")
        found = report(served.url, *mix, "--depth", "10", "--slots", "10-19")
        assert found["mix"] == {"read": 0.5, "write": 0.3, "ping": 0.1, "call": 0.1}
        for index in range(1000):
            assert storage.read(index) == b"own %d" % index
        sent = found["requests"]["sent"]
        reads = requests(served, FuncID.STORAGE_READ) - 10
        writes = requests(served, FuncID.STORAGE_REPLACE) - 20
        assert abs(reads - sent * 0.5) <= 10
        assert abs(writes - sent * 0.3) <= 10


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(1, 100), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=50),
)
def test_what_is_dealt_is_true_to_the_mix(weights: list[int], counts: list[int]) -> None:
    kinds = ("read", "write", "ping", "call")
    mix = {kind: w / sum(weights) for kind, w in zip(kinds, weights, strict=False)}
    dealer = Dealer(mix, {0: b""})
    dealt = dict.fromkeys(mix, 0)
    for count in counts:
        kinds_dealt = dealer.kinds(count)
        assert sum(number for _, number in kinds_dealt) == count
        for kind, number in kinds_dealt:
            dealt[kind] += number
    for kind, share in mix.items():
        assert abs(dealt[kind] - share * sum(counts)) < len(mix) + 1


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_are_exact_to_a_thousandth_and_a_microsecond(seconds: list[float]) -> None:
    one, other = Latency(), Latency()
    for number, value in enumerate(seconds):
        (one if number % 2 else other).record(value)
    one.add(other)
    assert one.count == len(seconds)
    assert one.most == max(seconds)
    assert one.mean == pytest.approx(sum(seconds) / len(seconds))
    in_order = sorted(seconds)
    for percent in (1.0, 50.0, 99.0, 100.0):
        # The smallest that so many per cent do not exceed.
        place = max(1, -(-len(in_order) * percent // 100))
        exact = in_order[int(place) - 1]
        assert one.percentile(percent) == pytest.approx(exact, rel=1 / 1000, abs=2e-6)


def test_an_open_loop_sends_what_is_due_and_no_more() -> None:
    with serving() as served:
        found = report(served.url, "--rate", "2000", "--duration", "0.5", "--mix", "read,ping")
        assert found["rate"] == 2000
        counts = found["requests"]
        assert (counts["sent"], counts["unsent"]) == (1000, 0)


def test_refusals_are_counted_by_return_code() -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def refuse() -> None:
        raise iproto.Error(0x1234_0002, "no")

    with serving(app) as served:
        mix = ("--mix", "call=1,ping=1", "--call", "0x30001")
        found = report(served.url, *mix, code=1)
        assert found["requests"]["refused"].keys() == {"0x12340002"}
        assert found["requests"]["refused"]["0x12340002"] == pytest.approx(
            found["requests"]["answered"] / 2, abs=10
        )
        mix = ("--mix", "call", "--call", "0x30099")
        found = report(served.url, *mix, code=1)
        assert found["requests"]["refused"].keys() == {"UNSUPPORTED_COMMAND"}


def test_the_text_says_it_all() -> None:
    with serving() as served:
        ended = bench(served.url, "--duration", "0.2", "--connections", "2", "--mix", "write")
        assert ended.returncode == 0
        lines = ended.stdout.splitlines()
        assert lines[0] == f"{served.url}: 2 connections, depth 16, write; closed loop"
        assert [line.split()[0] for line in lines[1:]] == [
            *("answered", "latency", "lost", "doubled", "wrong", "refused", "generator")
        ]
        ended = bench(served.url, "--duration", "0.2", "--rate", "3000")
        assert "; open loop, 3,000 a second" in ended.stdout
        assert "over 1 ms late" in ended.stdout


def test_a_terminal_sees_how_far_it_is() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with serving() as served:
        command = [*COMMAND, "--url", served.url, "--duration", "0.5"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the last one to hold it open has left
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
        os.close(ours)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert b"answered" in shown
    assert b"0%|" in shown


def test_neither_output_needs_to_be_open() -> None:
    with serving() as served:
        for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
            command = [*COMMAND, "--url", served.url, "--duration", "0.1"]
            shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "-", *command]
            ended = subprocess.run(shell, capture_output=True, timeout=PATIENCE, check=False)
            assert (ended.returncode, ended.stderr) == (0, b"")
            assert (b"answered" in ended.stdout) == (closed == "2>&-")
