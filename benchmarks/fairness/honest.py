"""An honest client, in a process of its own: one read at a time, with a pause after each.

    python -m benchmarks.fairness.honest PORT SECONDS

Prints the sorted times of its requests, in milliseconds, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from benchmarks.fairness.greedy import READ, REPLY

PAUSE = 0.001  # seconds


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    times = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            sock.sendall(READ)
            left = REPLY
            while left:
                got = len(sock.recv(left))
                if not got:
                    raise SystemExit("the server closed the connection")
                left -= got
            times.append((time.perf_counter() - began) * 1e3)
            time.sleep(PAUSE)
    print(json.dumps(sorted(times)))


if __name__ == "__main__":
    main()
