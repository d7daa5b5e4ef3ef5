"""Runs a command while other processes keep every core busy, to see what does not bear it.

python tools/beside_load.py COMMAND ARGUMENT...
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from multiprocessing import get_context

# Each computes or waits as servers do; so many make a load of 8 on a core while they run.
PROCESSES_A_CORE = 8


def keep_busy(parent: int) -> None:
    """Computes in pieces of all sizes, until the process that started it is gone."""
    block = bytearray(1 << 20)
    piece = 0
    while os.getppid() == parent:
        for _ in range(1 << piece % 6):
            block[:32] = hashlib.sha256(block).digest()
        piece += 1
        time.sleep(0)


def main() -> int:
    """Runs the command of the arguments; returns its exit code."""
    if len(sys.argv) < 2:
        print("usage: beside_load.py COMMAND ARGUMENT...", file=sys.stderr)
        return 2
    context = get_context("spawn")
    count = PROCESSES_A_CORE * (os.cpu_count() or 1)
    load = [
        context.Process(target=keep_busy, args=(os.getpid(),), daemon=True) for _ in range(count)
    ]
    for process in load:
        process.start()
    try:
        return subprocess.run(sys.argv[1:], check=False).returncode
    finally:
        for process in load:
            process.kill()
        for process in load:
            process.join()


if __name__ == "__main__":
    sys.exit(main())
