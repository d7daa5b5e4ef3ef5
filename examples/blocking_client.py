"""Calls of the storage and of service.py without asyncio, from several threads too.

    python examples/service.py &
    python examples/blocking_client.py [URL]

Without a URL it is the server on this machine's port 8080.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import iproto

SHOW = 0x00030001


def main() -> int:
    url = sys.argv[1] if len(sys.argv) > 1 else "iproto://127.0.0.1:8080"
    with iproto.Client(url, timeout=5) as client:
        try:
            client.connect()
        except iproto.TransportError as error:
            print(error, file=sys.stderr)
            return 1

        client.replace(7, "hello")
        print(f"slot 7 holds {client.read(7)!r}")

        # A slot holds bytes; they need not be text.
        client.replace(8, b"\xff\x00")
        print(f"slot 8 holds {client.read_bytes(8)!r}")

        client.switch_readonly()
        try:
            client.replace(7, "bye")
        except iproto.ReadOnlyError as error:
            print(f"refused: {error.text}")
        finally:
            client.switch_readwrite()

        # Threads share the client and its one connection.
        with ThreadPoolExecutor(max_workers=4) as pool:
            lots = list(pool.map(lambda number: client.call(SHOW, number), (1, 2)))
        print(f"for sale: {', '.join(lot['name'] for lot in lots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
