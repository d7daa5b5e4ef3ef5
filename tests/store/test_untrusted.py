"""Words of the mapped store that change behind the server's back: it stays within the store,
and answers with a slot's own content or an error."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

PROGRAM = r"""
import ctypes, mmap, random, sys

from iproto import _fastframe as ff
from iproto.errors import IprotoError
from iproto.wire import FuncID
from tests.helpers.oracle import packed_str, parse_responses, request
from tests.helpers.store import READERS_AT, SLOTS_AT, slot_at

seed, workers = int(sys.argv[1]), int(sys.argv[2])
dice = random.Random(seed)

# The store between two pages that nobody may touch: a step outside is a SIGSEGV.
size = ff.Storage.size_for(workers)
room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
region = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(region))
libc = ctypes.CDLL(None, use_errno=True)
memory = memoryview(region)[mmap.PAGESIZE : mmap.PAGESIZE + size]


def forbid(place):
    assert libc.mprotect(ctypes.c_void_p(start + place), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0


forbid(0)
forbid(mmap.PAGESIZE + room)
storage = ff.Storage(memory, workers=workers, worker=workers - 1, checked=True)


def telling(index):
    return b"slot %d " % index + bytes([65 + index % 26]) * (index % 240)


for index in range(1000):
    for _ in range(1 + index % 2):
        storage.replace(index, telling(index))

frames = ff.ServerFrames(storage, mailru=False, max_body=1000, max_calls=1, functions={})
words = memory.cast("I")


def packed(index):
    return b"\xcd" + index.to_bytes(2, "big")


def ask(func_id, body=b""):
    (reply,) = parse_responses(frames.feed(request(func_id, body, 1)), mailru=False)
    return reply


def exercise(index):
    # The content is the slot's own, whole; or what the flipped word is in; or an error.
    reply = ask(FuncID.STORAGE_READ, packed(index))
    if reply.return_code == 0:
        assert len(reply.body) <= 256
    own = storage_answer(lambda: storage.read(index))
    assert own is None or len(own) <= 256
    ask(FuncID.STORAGE_REPLACE, packed(index) + packed_str(telling(index)))
    storage_answer(lambda: storage.state)
    if dice.randrange(64) == 0:
        storage_answer(lambda: ff.Storage.check(memory))
        storage_answer(lambda: ff.Storage(memory, workers=workers))
    return reply


def storage_answer(call):
    try:
        return call()
    except (IprotoError, ValueError):
        return None


def values(word):
    yield word ^ 1 << dice.randrange(32)
    yield dice.choice((0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1, word ^ 0xFFFFFFFF))
    yield dice.randrange(1 << 32)


def slot_of(place):
    page, within = divmod(place * 4 - SLOTS_AT, 4096)
    index = page * 7 + min(within // 576, 6)
    return index if 0 <= index < 1000 else dice.randrange(1000)


def places():
    # Every word of the header and of the workers' sides of the lock, those that say what
    # counts of a slot, of every slot, and some of all the rest.
    yield from range(0, 256 // 4)
    for worker in range(workers):
        yield from range((READERS_AT + 128 * worker) // 4, (READERS_AT + 128 * worker) // 4 + 5)
    for index in range(1000):
        yield from range(slot_at(index) // 4, slot_at(index) // 4 + 3)
    for _ in range(1000):
        yield dice.randrange(len(words))


for place in places():
    kept = memory[place * 4 : place * 4 + 4].tobytes()
    for value in values(words[place]):
        words[place] = value
        index = slot_of(place)
        reply = exercise(index)
        if place < SLOTS_AT // 4 or place >= READERS_AT // 4:
            # None of the slots' words was touched.
            assert reply.return_code or reply.body == telling(index), place
        memory[place * 4 : place * 4 + 4] = kept
    storage_answer(lambda: storage.recover(0))
    storage.counters()
print("done")
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_no_changed_word_leads_out_of_the_store(workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(random.randrange(1 << 30)), str(workers)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
