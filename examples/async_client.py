"""Calls of the storage and of service.py from asyncio.

    python examples/service.py &
    python examples/async_client.py [URL]

Without a URL it is the server on this machine's port 8080.
"""

from __future__ import annotations

import asyncio
import sys

import iproto

SHOW, BID, APPRAISE = 0x00030001, 0x00030002, 0x00030003


async def storage(client: iproto.AsyncClient) -> None:
    await client.replace_many({index: f"string {index}" for index in range(100)})
    # Calls that start together leave together and share one connection.
    texts = await asyncio.gather(*(client.read(index) for index in range(100)))
    print(f"read {len(texts)} strings, the last is {texts[-1]!r}")


async def functions(client: iproto.AsyncClient) -> None:
    lot = await client.call(SHOW, 1)
    print(f"lot 1 is {lot['name']}, at {lot['price']}")

    await client.call(BID, 1, "ada", lot["price"] + 5)
    try:
        await client.call(BID, 1, "bob", 1)
    except iproto.Error as error:
        print(f"refused with {error.code:#x}: {error.text}")

    try:
        await client.call(BID, 1, "bob", "a lot of money")
    except iproto.IllegalParamsError as error:
        print(f"refused: {error.text}")

    # Each call has an outcome of its own.
    outcomes = await asyncio.gather(
        client.call(APPRAISE, 2, 0.01),
        client.call(APPRAISE, 2, 60.0),
        return_exceptions=True,
    )
    print(f"lot 2 is worth {outcomes[0]}; the other expert: {outcomes[1]}")


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "iproto://127.0.0.1:8080"
    async with iproto.AsyncClient(url, timeout=5) as client:
        await storage(client)
        await functions(client)


if __name__ == "__main__":
    asyncio.run(main())
