"""Streams of requests, whole and broken, as hypothesis strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from iproto.wire import FuncID
from tests.helpers.oracle import packed_str, request
from tests.helpers.server_frames import MAX_BODY, USERS
from tests.helpers.vector_bodies import BAD_READS, BAD_REPLACES, BAD_SWITCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

settings.register_profile(
    "codec",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
codec = settings(settings.get_profile("codec"))

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])
either_dialect = st.booleans()


uint32s = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]), st.integers(0, 2**32 - 1))
indexes = st.one_of(st.integers(0, 3), st.sampled_from([127, 128, 255, 256, 998, 999]))
contents = st.one_of(
    st.binary(max_size=40),
    st.integers(250, 260).map(lambda size: b"x" * size),
)


def forms_of_int(value: int) -> list[bytes]:
    """An integer in every MsgPack form that can hold it."""
    forms = []
    if -32 <= value < 128:
        forms.append(value.to_bytes(1, "big", signed=True))
    for power in range(4):
        bits = 8 << power
        if 0 <= value < 2**bits:
            forms.append(bytes([0xCC + power]) + value.to_bytes(bits // 8, "big"))
        if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            forms.append(bytes([0xD0 + power]) + value.to_bytes(bits // 8, "big", signed=True))
    return forms


def forms_of_str(content: bytes) -> list[bytes]:
    """A str in every MsgPack form that can hold it."""
    size = len(content)
    forms = [bytes([0xA0 | size]) + content] if size < 32 else []
    for power in range(3):
        if size < 2 ** (8 << power):
            forms.append(bytes([0xD9 + power]) + size.to_bytes(1 << power, "big") + content)
    return forms


edge_ints = st.sampled_from(
    [
        *(-1, -32, -33, -128, -129, -(2**15), -(2**31), -(2**63), -(2**63) + 5),
        *(1000, 1001, 2**15, 2**16 - 1, 2**16 + 1, 2**31, 2**32, 2**32 + 1),
        *(2**63 - 1, 2**63, 2**64 - 1),
    ]
)
any_indexes = st.one_of(indexes, indexes, edge_ints, st.integers(-(2**63), 2**64 - 1))
packed_indexes = any_indexes.flatmap(lambda value: st.sampled_from(forms_of_int(value)))
packed_contents = contents.flatmap(lambda content: st.sampled_from(forms_of_str(content)))


def heads(fix: int, wide: int, count: int) -> st.SearchStrategy[bytes]:
    """The head of an array or map of this many elements, in every form."""
    return st.sampled_from(
        [
            bytes([fix | count]),
            bytes([wide]) + count.to_bytes(2, "big"),
            bytes([wide + 1]) + count.to_bytes(4, "big"),
        ]
    )


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


# Of both pairs, and so mixed at times: then the body is refused.
keys_of_index = st.sampled_from(forms_of_str(b"ID") + forms_of_str(b"Idx"))
keys_of_content = st.sampled_from(forms_of_str(b"S") + forms_of_str(b"Str"))

read_bodies = st.one_of(
    packed_indexes,
    joined(heads(0x90, 0xDC, 1), packed_indexes),
    joined(heads(0x80, 0xDE, 1), keys_of_index, packed_indexes),
)
replace_bodies = st.one_of(
    joined(packed_indexes, packed_contents),
    joined(heads(0x90, 0xDC, 2), packed_indexes, packed_contents),
    joined(heads(0x80, 0xDE, 2), keys_of_index, packed_indexes, keys_of_content, packed_contents),
    joined(heads(0x80, 0xDE, 2), keys_of_content, packed_contents, keys_of_index, packed_indexes),
)


def from_hex(bodies: dict[str, str]) -> st.SearchStrategy[bytes]:
    return st.sampled_from([bytes.fromhex(body) for body in bodies.values()])


objects = st.one_of(
    packed_indexes,
    packed_contents,
    keys_of_index,
    keys_of_content,
    heads(0x90, 0xDC, 1),
    heads(0x90, 0xDC, 2),
    heads(0x80, 0xDE, 1),
    heads(0x80, 0xDE, 2),
    st.sampled_from([bytes.fromhex(x) for x in ("c0", "c1", "c2", "cb3ff0000000000000", "c40161")]),
    st.integers(0, 255).map(lambda byte: bytes([byte])),
)
soups = st.lists(objects, max_size=6).map(b"".join)
"""MsgPack objects and heads in any order: nearly right, mostly wrong."""

bodies_of = {
    FuncID.STORAGE_READ: st.one_of(read_bodies, from_hex(BAD_READS), soups),
    FuncID.STORAGE_REPLACE: st.one_of(replace_bodies, from_hex(BAD_REPLACES), soups),
}
switch_bodies = st.one_of(st.sampled_from([b"", b"\xc0"]), from_hex(BAD_SWITCHES))
other_bodies = st.one_of(st.just(b""), st.binary(max_size=20))


class Frame(NamedTuple):
    """A request to be."""

    func_id: int
    body: bytes
    request_id: int

    def wire(self) -> bytes:
        return request(self.func_id, self.body, self.request_id)


def frames_of(func_id: int) -> st.SearchStrategy[Frame]:
    if func_id in bodies_of:
        bodies = bodies_of[FuncID(func_id)]
    elif 0x00010001 <= func_id <= 0x00010003:
        bodies = switch_bodies
    else:
        bodies = other_bodies
    return st.builds(Frame, st.just(func_id), bodies, uint32s)


# Reads and writes most often; back to READ_WRITE more often than away from it.
often = [FuncID.STORAGE_READ, FuncID.STORAGE_REPLACE] * 6
seldom = [
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_READONLY,
    FuncID.ADM_STORAGE_SWITCH_MAINTENANCE,
    FuncID.PING,
]
builtin_frames = st.sampled_from([*often, *seldom]).flatmap(frames_of)
unknown_frames = st.builds(Frame, uint32s, other_bodies, uint32s)
user_bodies = st.binary(max_size=80).map(packed_str)
user_frames = st.builds(Frame, st.sampled_from(list(USERS)), user_bodies, uint32s)
shutdown_frames = frames_of(FuncID.SHUTDOWN)
oversize_frames = st.builds(Frame, uint32s, st.just(b"o" * (MAX_BODY + 1)), uint32s)

plain_streams = st.lists(st.one_of(builtin_frames, builtin_frames, unknown_frames), max_size=12)
streams = st.builds(
    lambda before, end, after: [*before, *end, *after],
    st.lists(
        st.one_of(builtin_frames, builtin_frames, builtin_frames, unknown_frames, user_frames),
        max_size=12,
    ),
    st.lists(st.one_of(shutdown_frames, oversize_frames), max_size=1),
    st.lists(builtin_frames, max_size=3),
)
cuts = st.lists(st.integers(0, 2**16), max_size=12)


def wire(frames: Sequence[Frame]) -> bytes:
    return b"".join(frame.wire() for frame in frames)


mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "truncate"]),
        st.integers(0, 2**16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def mutate(data: bytes, changes: Sequence[tuple[str, int, int]]) -> bytes:
    mutated = bytearray(data)
    for change, anywhere, value in changes:
        if not mutated:
            break
        place = anywhere % len(mutated)
        if change == "flip":
            mutated[place] ^= 1 << value % 8
        elif change == "set":
            mutated[place] = value
        elif change == "insert":
            mutated.insert(place, value)
        elif change == "delete":
            del mutated[place]
        else:
            del mutated[place:]
    return bytes(mutated)
