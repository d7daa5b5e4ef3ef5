"""The checker of histories, held against histories that are right by construction, against
known wrong ones, and against trying all orders."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.linearizability import Operation, violation, violations

if TYPE_CHECKING:
    from collections.abc import Sequence


def write(value: object, begun: float, ended: float | None, slot: int = 0) -> Operation:
    return Operation(slot, True, value, begun, ended)


def read(value: object, begun: float, ended: float | None, slot: int = 0) -> Operation:
    return Operation(slot, False, value, begun, ended)


# Right histories.


def simulate(seed: int, operations: int, clients: int = 6, slots: int = 3) -> list[Operation]:
    """Clients of real registers: each operation takes effect at one moment inside it.

    One write in ten gets no reply; half of those never take effect, and half
    of the others only long after they were given up.
    """
    chance = random.Random(seed)
    events: list[tuple[float, int]] = []
    planned: list[tuple[int, bool, float, float | None]] = []
    free = [0.0] * clients
    for number in range(operations):
        client = chance.randrange(clients)
        begun = free[client] + chance.random()
        effect = begun + chance.random()
        ended: float | None = effect + chance.random()
        free[client] = effect + 1.0
        is_write = chance.random() < 0.4
        happens = True
        if is_write and chance.random() < 0.1:
            ended = None
            happens = chance.random() < 0.5
            effect += chance.choice((0.0, 20.0))
        elif chance.random() < 0.05:
            ended = None
        planned.append((chance.randrange(slots), is_write, begun, ended))
        if happens:
            events.append((effect, number))
    held: dict[int, object] = dict.fromkeys(range(slots), b"")
    seen: dict[int, object] = {}
    for _, number in sorted(events):
        slot, is_write, _, _ = planned[number]
        if is_write:
            held[slot] = number
        seen[number] = held[slot]
    history = [
        Operation(slot, is_write, number if is_write else seen[number], begun, ended)
        for number, (slot, is_write, begun, ended) in enumerate(planned)
    ]
    chance.shuffle(history)
    return history


@pytest.mark.parametrize("seed", range(40))
def test_what_registers_do_is_accepted(seed: int) -> None:
    assert violations(simulate(seed, 400)) == {}


@pytest.mark.parametrize("seed", range(20))
def test_one_changed_read_in_a_long_history_is_found(seed: int) -> None:
    """A read made to return a value that was overwritten long before."""
    history = sorted(simulate(seed, 400), key=lambda operation: operation.begun)
    for at in range(len(history) - 1, 0, -1):
        last = history[at]
        if last.is_write or last.ended is None:
            continue
        old = next(
            (o for o in history if o.slot == last.slot and o.is_write and o.ended is not None),
            None,
        )
        assert old is not None
        assert old.value != last.value
        history[at] = last._replace(value=old.value)
        break
    assert list(violations(history)) == [last.slot]


def test_a_long_history_is_judged_in_no_time() -> None:
    history = simulate(1, 100_000, slots=1)
    begun = time.perf_counter()
    assert violations(history) == {}
    assert time.perf_counter() - begun < 10.0


@pytest.mark.parametrize(
    "history",
    [
        [],
        [read(b"", 0, 1)],
        [write(1, 0, 1), read(1, 2, 3)],
        [write(1, 0, 3), read(b"", 1, 2)],
        [write(1, 0, 3), read(1, 1, 2)],
        # Concurrent writes, seen in either order.
        [write(1, 0, 5), write(2, 0, 5), read(2, 6, 7)],
        [write(1, 0, 5), write(2, 0, 5), read(1, 6, 7)],
        # A write without a reply: in effect late, early, or never.
        [write(1, 0, None), read(b"", 1, 2), read(1, 3, 4)],
        [write(1, 0, None), read(1, 1, 2), write(2, 3, 4), read(2, 5, 6)],
        [write(1, 0, None), write(2, 1, 2), read(2, 3, 4), read(1, 5, 6)],
        [write(1, 0, None), write(2, 1, 2), read(2, 3, 4)],
        # A read without a reply says nothing.
        [write(1, 0, 1), read(b"", 2, None)],
        # Moments that are equal overlap.
        [write(1, 0, 1), read(b"", 1, 2)],
    ],
)
def test_right(history: list[Operation]) -> None:
    assert violation(history) is None


# Wrong histories.


@pytest.mark.parametrize(
    ("history", "said"),
    [
        pytest.param(
            [write(1, 0, 1), write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)],
            "neither can be first",
            id="stale read after the newer was read",
        ),
        pytest.param(
            [write(1, 0, 9), read(1, 1, 2), read(b"", 3, 4)],
            "neither can be first",
            id="new-old inversion during a write",
        ),
        pytest.param(
            [write(1, 0, 1), write(2, 2, None), read(2, 3, 4), read(1, 5, 6)],
            "neither can be first",
            id="new-old inversion, the newer without a reply",
        ),
        pytest.param(
            [write(1, 0, 1), read(b"", 2, 3)],
            "neither can be first",
            id="acknowledged write lost",
        ),
        pytest.param(
            [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
            "neither can be first",
            id="acknowledged overwrite lost",
        ),
        pytest.param(
            [write(1, 0, 1), read(2, 2, 3)], "nobody wrote", id="a value that was never written"
        ),
        pytest.param(
            [read(1, 0, 1), write(1, 2, 3)], "before it was written", id="read of the future"
        ),
        pytest.param(
            [read(1, 0, 1), write(1, 2, None)],
            "before it was written",
            id="read of the future, without a reply",
        ),
        pytest.param(
            [write(1, 0, 5), write(2, 0, 5), read(1, 6, 7), read(2, 8, 9), read(1, 10, 11)],
            "neither can be first",
            id="there and back",
        ),
        pytest.param(
            [
                *(write(1, 0, 5), write(2, 0, 5)),
                *(read(1, 6, 8), read(2, 6, 8)),
                *(read(1, 9, 10), read(2, 11, 12)),
            ],
            "neither can be first",
            id="two readers that disagree",
        ),
    ],
)
def test_wrong(history: list[Operation], said: str) -> None:
    assert said in (violation(history) or "")
    assert not brute_force(history)


def test_a_violation_names_its_slot_and_its_operations() -> None:
    history = [write(1, 0, 1), write(2, 0, 1, slot=5), read(b"", 2, 3, slot=5)._replace(name="B")]
    found = violations(history)
    assert list(found) == [5]
    assert "read b'' [2, 3] by B" in found[5]
    assert "write 2 [0, 1]" in found[5]


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([write(1, 0, 1), write(1, 2, 3)], "not unique"),
        ([write(b"", 0, 1)], "not unique"),
        ([read(1, 2, 1)], "ends before it begins"),
    ],
)
def test_what_cannot_be_judged(history: list[Operation], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        violation(history)


# All orders.


def brute_force(history: Sequence[Operation], held: object = b"") -> bool:
    """Whether some order is right, by trying every operation that may be next."""
    if all(operation.ended is None for operation in history):
        return True
    must_begin_before = min(o.ended for o in history if o.ended is not None)
    for at, operation in enumerate(history):
        if operation.begun > must_begin_before:
            continue
        if not operation.is_write and operation.ended is not None and operation.value != held:
            continue
        rest = [*history[:at], *history[at + 1 :]]
        if brute_force(rest, operation.value if operation.is_write else held):
            return True
    return False


moments = st.integers(0, 9)
lengths = st.one_of(st.integers(0, 4), st.integers(0, 4), st.none())


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to 3 writes and 4 reads, of values that were mostly written."""
    history = []
    values: list[object] = [b"", 99]
    for number in range(draw(st.integers(0, 3))):
        values.insert(0, number)
        begun, length = draw(moments), draw(lengths)
        history.append(write(number, begun, None if length is None else begun + length))
    for value in draw(st.lists(st.sampled_from(values), max_size=4)):
        begun, length = draw(moments), draw(lengths)
        history.append(read(value, begun, None if length is None else begun + length))
    return history


@settings(derandomize=True, deadline=None, max_examples=600, database=None)
@given(histories())
def test_it_says_what_trying_all_orders_says(history: list[Operation]) -> None:
    assert (violation(history) is None) == brute_force(history)


def test_it_says_what_trying_all_orders_says_of_many_more() -> None:
    """Without hypothesis, which is slow; enough of them right, and enough wrong."""
    chance = random.Random(7)
    right = 0
    for _ in range(4000):
        history = []
        writes = chance.randrange(1, 4)
        for number in range(writes + chance.randrange(1, 4)):
            begun = chance.randrange(12)
            ended = None if chance.random() < 0.15 else begun + chance.randrange(6)
            if number < writes:
                history.append(write(number, begun, ended))
            else:
                history.append(read(chance.choice([b"", *range(writes)]), begun, ended))
        expected = brute_force(history)
        assert (violation(history) is None) == expected
        right += expected
    assert 1000 < right < 3000
