"""Bodies of user functions: they are checked before anything is built of them."""

from __future__ import annotations

import decimal  # noqa: TC003  # the signature of a function is evaluated
import struct
import uuid
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iproto
from iproto import ConfigError, IllegalParamsError, ReturnCode
from tests.helpers.callees import callee
from tests.helpers.functions import OWN, answer, pack


class Wanted(NamedTuple):
    ids: frozenset[int]


def anything(value: Any) -> None: ...


REFUSED = ReturnCode.ILLEGAL_PARAMS


def int_keys(count: int) -> bytes:
    """A map of this many int keys; which of them collide in a dict, anybody can find out."""
    pairs = b"".join(b"\xcf" + struct.pack(">Q", n << 32) + b"\xc0" for n in range(count))
    return b"\xdf" + struct.pack(">I", count) + pairs


def test_keys_that_may_collide_are_refused_before_a_dict_is_made() -> None:
    def typed(value: dict[int, None]) -> int:
        return len(value)

    text = "holds more than 1000 map keys that are neither str nor bin"
    for function in (anything, typed):
        (few, many, within) = answer(
            function, int_keys(1000), int_keys(63_000), b"\x91" + int_keys(1001)
        )
        assert few[0] == 0
        assert (many[0], text in many[1]) == (REFUSED, True)
        assert (within[0], text in within[1]) == (REFUSED, True)


def test_keys_hashed_with_a_secret_are_not_counted() -> None:
    def size(value: dict[str, int], other: Any) -> int:
        return len(value) + len(other)

    texts = dict.fromkeys((f"key {n}" for n in range(1500)), 1)
    others = dict.fromkeys((b"key %d" % n for n in range(1500)), 1)
    assert answer(size, pack(texts, others)) == [(0, 3000)]


def test_sets_and_keys_that_become_numbers_are_bounded_too() -> None:
    def numbers(items: set[int]) -> int:
        return len(items)

    def nested(items: list[Wanted]) -> int:
        return sum(len(item.ids) for item in items)

    def texts(items: set[str]) -> int:
        return len(items)

    def ids(items: set[uuid.UUID]) -> int:
        return len(items)

    def prices(items: dict[decimal.Decimal, int]) -> int:
        return len(items)

    def both(items: set[int], names: list[str]) -> int:
        return len(items) + len(names)

    def listed(items: list[int]) -> int:
        return len(items)

    many = list(range(1001))
    names = [str(n) for n in range(1001)]
    some_ids = [str(uuid.UUID(int=n)) for n in range(1001)]
    assert answer(numbers, pack(many[:1000]), pack([many[:999]])) == [(0, 1000), (0, 999)]
    assert answer(listed, pack([many * 5])) == [(0, 5005)]
    assert answer(texts, pack([names * 3])) == [(0, 1001)]
    assert answer(both, pack(many[:100], names)) == [(0, 1101)]
    for function, body in (
        (numbers, pack(many)),
        (numbers, pack([many])),
        (nested, pack([[[many[:600]], [many[:600]]]])),
        (ids, pack([some_ids])),
        (prices, pack(dict.fromkeys(names, 1))),
    ):
        ((code, text),) = answer(function, body)
        assert code == REFUSED
        assert "more than 1000 map keys and array elements" in text


@pytest.mark.parametrize("one", [b"\xc0", b"\x80", b"\x90", b"\xa0", b"\x91\xc0"])
def test_a_body_of_too_many_objects_is_refused(one: bytes) -> None:
    body = one * ((1 << 20) // len(one))
    array = b"\xdd" + struct.pack(">I", len(body) // len(one)) + body
    for code, text in answer(anything, body, array[:-5] + b"\xa4    ", max_body=2 << 20):
        assert code == REFUSED
        assert "more than 100000 objects, the limit (max_objects)" in text


def test_the_limits_of_a_body_are_settings() -> None:
    limits: dict[str, Any] = {"max_objects": 5, "max_depth": 2}
    got = answer(
        anything, pack([1, 2, 3, 4]), pack([1, 2, 3, 4, 5]), pack([[1]]), pack([[[1]]]), **limits
    )
    assert got[0] == (0, None)
    assert "more than 5 objects" in got[1][1]
    assert got[2][0] == 0
    assert "nests deeper than 2 arrays and maps, the limit (max_depth)" in got[3][1]
    with pytest.raises(ConfigError, match="max_objects is 0"):
        iproto.Config(max_objects=0)
    with pytest.raises(ConfigError, match=r"max_depth is 513.*1\.\.512"):
        iproto.Config(max_depth=513)


def test_a_body_may_nest_as_deep_as_can_be_allowed() -> None:
    def depth(value: Any) -> int:
        levels = 0
        while value:
            value, levels = value[0], levels + 1
        return levels

    assert answer(depth, b"\x91" * 511 + b"\x90", max_depth=512) == [(0, 510)]


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\xc0",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdc\x00",
        b"\x91\xdc\x00\x02\xc0",
        b"\x82\xa1a\xc0\xa1b",
    ],
)
def test_a_head_that_claims_more_than_there_is_is_refused(body: bytes) -> None:
    size = len(body)
    text = f"body of {size} bytes ends within an object that begins at byte 0"
    assert answer(anything, body) == [(REFUSED, text)]


def read_by_msgpack(body: bytes) -> list[tuple[int, int]] | None:
    """Where each outermost object begins and ends; None if msgpack refuses the body."""
    unpacker = msgpack.Unpacker(raw=True, strict_map_key=False, object_pairs_hook=list)
    unpacker.feed(body)
    found = []
    end = 0
    try:
        while end < len(body):
            unpacker.skip()
            found.append((end, unpacker.tell()))
            end = unpacker.tell()
    except (msgpack.OutOfData, ValueError, msgpack.UnpackException):
        return None
    return found


OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.text(max_size=40) | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)  # fmt: skip
BODIES = st.lists(OBJECTS, max_size=3).map(lambda objects: b"".join(map(msgpack.packb, objects)))
BROKEN = st.builds(
    lambda body, at, byte: body[: at % (len(body) + 1)] + byte + body[at % (len(body) + 1) + 1 :],
    BODIES, st.integers(0, 1000), st.binary(max_size=2),
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES | BROKEN | st.binary(max_size=30))
def test_the_check_and_msgpack_agree_on_every_body(body: bytes) -> None:
    bodies = callee(OWN, max_objects=10_000)
    expected = read_by_msgpack(body)
    if expected is None:
        with pytest.raises(IllegalParamsError):
            bodies.arguments(body)
        return
    (array,) = bodies.arguments(body)
    if len(expected) == 1 and (body[0] & 0xF0 == 0x90 or body[0] in (0xDC, 0xDD)):
        assert array == body
    else:
        assert array == b"\xdc" + struct.pack(">H", len(expected)) + body
