"""A process that works on a store in a file, as its second worker, until its input ends.

python neighbour.py STORE read|write
"""

from __future__ import annotations

import mmap
import select
import sys

from iproto import Storage


def main() -> None:
    path, work = sys.argv[1:]
    with open(path, "r+b") as file:
        storage = Storage(mmap.mmap(file.fileno(), 0), workers=2, worker=1)
    print("working", flush=True)
    # The slots of the other process' choice: reads and writes do meet.
    while not select.select([sys.stdin], [], [], 0)[0]:
        for index in range(1000):
            if work == "read":
                storage.read(index)
            else:
                storage.replace(index, b"neighbour")


if __name__ == "__main__":
    main()
