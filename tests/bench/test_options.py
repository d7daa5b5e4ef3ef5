"""What ``iproto bench`` refuses, in one line."""

from __future__ import annotations

import subprocess

import pytest

import iproto
from tests.helpers.bench import COMMAND, bench
from tests.helpers.harness import PATIENCE, serving


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--connections", "0"],
            "--connections is 0; it must be a number of connections, 1..100000",
        ),
        (["--depth", "10001"], "--depth is 10001; it must be a number of requests, 1..10000"),
        (
            ["--rate", "0"],
            "--rate is 0.0; it must be a number of requests a second, over 0, at most 100000000",
        ),
        (["--rate", "nan"], "--rate is nan; it must be a number"),
        (
            ["--duration", "-1"],
            "--duration is -1.0; it must be a number of seconds, over 0, at most 86400",
        ),
        (["--value-size", "257"], "--value-size is 257; it must be a number of bytes, 4..256"),
        (["--processes", "51"], "--processes is 51; it must be a number of processes, 1..50"),
        (["--mix", "reads"], "--mix: no kind 'reads'; there are read, write, ping, call"),
        (["--mix", "read=x"], "--mix: 'x' is no share of read"),
        (["--mix", "read,read=2"], "--mix: read is there twice"),
        (["--mix", "call"], "--call, and 'call' in --mix, go together"),
        (["--call", "1"], "--call, and 'call' in --mix, go together"),
        (["--mix", "call", "--call", "x"], "--call: 'x' is no function number"),
        (["--mix", "call", "--call", "1", "x"], "--call: 'x' is not JSON"),
        (["--slots", "5-1000"], "--slots '5-1000': use A-B or A, within 0-999"),
        (["--slots", "9-5"], "--slots '9-5': the first is after the last"),
        (["--url", "http://x"], "scheme 'http'"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], says: str) -> None:
    ended = bench("iproto://127.0.0.1:1", *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr


def test_a_server_that_is_not_there_is_exit_code_3() -> None:
    ended = bench("iproto://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == (
        "iproto: cannot connect to 127.0.0.1:1: Connection refused; the request was not executed\n"
    )


def test_connections_beyond_the_limit_of_files_are_told() -> None:
    with serving() as served:
        ended = subprocess.run(
            [
                *("/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "-"),
                *(*COMMAND, "--url", served.url, "--connections", "100"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.count("\n") == 1
    assert "100 connections" in ended.stderr
    assert "Too many open files; the request was not executed\n" in ended.stderr
    assert ended.stderr.count("not executed") == 1


def test_a_storage_that_cannot_be_written_is_refused_at_once() -> None:
    with serving() as served:
        served.server.storage.switch(iproto.State.READ_ONLY)
        ended = bench(served.url, "--mix", "write")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "READ_ONLY" in ended.stderr
