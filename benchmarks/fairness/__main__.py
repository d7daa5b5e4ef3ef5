"""One honest client beside greedy ones: how long its requests take, and what that costs.

    make bench-fairness                    this checkout
    make bench-fairness AGAINST=DIR        and another one, built, in interleaved rounds

Prints for each number of greedy clients the median and the 99th percentile of the honest
client's requests, and the requests of all that the server answered in a second of its CPU
time; medians of the rounds. The server has one core, the clients have another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peers.common.command_line import say
from benchmarks.peers.common.servers import free_port
from benchmarks.peers.common.watch import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SERVER_CPU, CLIENT_CPU = 0, 1
WARM_UP = 1.5  # seconds: the greedy ones have filled every buffer
START = 15.0  # seconds for the server to serve


class Round(NamedTuple):
    """One round: milliseconds, and requests for a second of the server's CPU."""

    p50: float
    p99: float
    worst: float
    per_cpu_second: float


def pinned(cpu: int, command: list[str]) -> list[str]:
    taskset = shutil.which("taskset")
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [taskset, "-c", str(cpus[cpu]), *command] if taskset and len(cpus) > cpu else command


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def requests(metrics: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=START) as answer:
        text = answer.read().decode()
    counts = re.findall(r"^iproto_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, counts))


def wait_until_served(process: subprocess.Popen[str], metrics: int) -> None:
    deadline = time.monotonic() + START
    while True:
        with contextlib.suppress(OSError):
            requests(metrics)
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server does not serve")
        time.sleep(0.05)


def measure(checkout: Path, loop: str, greedy: int, depth: int, seconds: float) -> Round:
    port, metrics = free_port(), free_port()
    serve = [
        str(checkout / ".venv/bin/iproto"), "serve", "--loop", loop, "--log-level", "ERROR",
        "--bind", f"127.0.0.1:{port}", "--metrics-bind", f"127.0.0.1:{metrics}",
    ]  # fmt: skip
    client = [sys.executable, "-m"]
    with ended(subprocess.Popen(pinned(SERVER_CPU, serve), text=True)) as server:
        wait_until_served(server, metrics)
        fill = [str(checkout / ".venv/bin/iproto"), "replace", "7", "x" * 253]
        subprocess.run([*fill, "--url", f"iproto://127.0.0.1:{port}"], check=True)
        hurry = [*client, "benchmarks.fairness.greedy", str(port), str(greedy), str(depth)]
        with ended(
            subprocess.Popen(
                pinned(CLIENT_CPU, hurry),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        ) as crowd:
            assert crowd.stdout is not None
            if crowd.stdout.readline() != "ready\n":
                raise SystemExit("the greedy clients do not start")
            time.sleep(WARM_UP)
            before, cpu = requests(metrics), cpu_seconds([server.pid])
            ask = [*client, "benchmarks.fairness.honest", str(port), str(seconds)]
            done = subprocess.run(
                pinned(CLIENT_CPU, ask), capture_output=True, text=True, check=True, cwd=ROOT
            )
            used = cpu_seconds([server.pid]) - cpu
            answered = requests(metrics) - before
            if crowd.poll() is not None:
                raise SystemExit("the greedy clients ended early")
    times = json.loads(done.stdout)
    return Round(
        statistics.median(times),
        times[int(len(times) * 0.99)],
        times[-1],
        answered / used,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.fairness", description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, with its .venv built")
    parser.add_argument("--greedy", default="0,1,10,50,200", help="numbers of greedy clients")
    parser.add_argument("--depth", type=int, default=0, help="their requests at once; 0: no end")
    parser.add_argument("--loop", default="uvloop", choices=("uvloop", "asyncio"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round")
    given = parser.parse_args()
    checkouts = {"this": ROOT}
    if given.against is not None:
        checkouts["other"] = given.against.resolve()
    print(f"loop {given.loop}, depth {given.depth or 'without end'}\n")
    print("| greedy | checkout | p50 ms | p99 ms | worst ms | requests/CPU s | of the other |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for greedy in map(int, given.greedy.split(",")):
        rounds: dict[str, list[Round]] = {name: [] for name in checkouts}
        for number in range(given.rounds):
            for name, checkout in checkouts.items():
                one = measure(checkout, given.loop, greedy, given.depth, given.seconds)
                say(f"{greedy} greedy, round {number + 1}, {name}: {one}")
                rounds[name].append(one)
        medians = {
            name: Round(*map(statistics.median, zip(*some, strict=True)))
            for name, some in rounds.items()
        }
        for name, one in medians.items():
            ratio = one.per_cpu_second / medians["other"].per_cpu_second if len(medians) > 1 else 1
            print(
                f"| {greedy} | {name} | {one.p50:.2f} | {one.p99:.2f} | {one.worst:.2f} "
                f"| {one.per_cpu_second:,.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
