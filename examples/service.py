"""A service with functions of its own: bids at an auction.

    python examples/service.py [HOST:PORT]

or, with every option of the server, from within this directory:

    iproto serve service:app

The two clients beside this file call it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys

import iproto

# By convention the low byte of a code is 1 for "try again", 2 for "error".
BID_TOO_LOW = 0x5102
NO_SUCH_LOT = 0x5202

app = iproto.App()


@dataclasses.dataclass
class Lot:
    name: str
    price: int
    bidder: str | None = None


class BidTooLow(iproto.Error):
    """An error of this service's own: the client gets its code and its text."""

    def __init__(self, least: int) -> None:
        super().__init__(BID_TOO_LOW, f"bid {least} or more")


lots = {1: Lot("a lamp", 10), 2: Lot("a chair", 25)}


def find_lot(number: int) -> Lot:
    try:
        return lots[number]
    except KeyError:
        raise iproto.Error(NO_SUCH_LOT, f"no lot {number}; there are {sorted(lots)}") from None


@app.function(0x00030001)
def show(number: int) -> Lot:
    """The lot, as a map of its fields. Quick, so a plain function will do."""
    return find_lot(number)


@app.function(0x00030002)
def bid(number: int, bidder: str, price: int) -> None:
    lot = find_lot(number)
    if price <= lot.price:
        raise BidTooLow(lot.price + 1)
    lot.price, lot.bidder = price, bidder


@app.function(0x00030003, timeout=0.5)
async def appraise(number: int, seconds: float) -> int:
    """Waits for an expert, who may take too long: then the call is answered TIMEOUT."""
    lot = find_lot(number)
    await asyncio.sleep(seconds)
    return lot.price * 2


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"
    return iproto.run(iproto.Config(bind=address), app)


if __name__ == "__main__":
    sys.exit(main())
