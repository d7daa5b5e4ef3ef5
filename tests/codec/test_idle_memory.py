"""What a connection takes of memory while it is idle: of libc's as well as of Python's objects."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

LIMIT = 640
"""Bytes; 512 on CPython 3.11, half of which are fields. A whole connection may have 2 KiB."""

SCRIPT = """
import ctypes, gc
from iproto import _fastframe as ff

FRAMES = 2000

class MallInfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = MallInfo

def bytes_in_use():
    gc.collect()
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd

storage, functions, budget = ff.Storage(), {}, ff.CallBudget(100)

def idle():
    "A connection that had a request in two parts, and its reply."
    frames = ff.ServerFrames(storage, mailru=False, max_body=1 << 20, max_calls=64,
                             functions=functions, budget=budget)
    frames.feed(bytes.fromhex("02000200 01000000 01000000"))
    assert frames.feed(b"\\5")
    return frames

kept = [None] * FRAMES
idle()
before = bytes_in_use()
for number in range(FRAMES):
    kept[number] = idle()
print((bytes_in_use() - before) / FRAMES)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc counts what is in use")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has a malloc of its own")
def test_an_idle_connections_frames_are_small() -> None:
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    assert 100 < float(done.stdout) < LIMIT
