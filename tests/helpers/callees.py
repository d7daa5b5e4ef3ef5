"""User functions as the codec's tests call them: bodies and replies as they are on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import iproto._fastframe as ff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NO_ARGUMENTS = b"\xdc\x00\x00"


class Answer(Exception):
    """What a call is answered with."""

    def __init__(self, code: int, body: bytes) -> None:
        super().__init__(code, body)
        self.code = code
        self.body = body


class Taken(NamedTuple):
    """A call that runs."""

    func_id: int
    request_id: int
    body: bytes
    call: ff.Call


def _code_and_body(error: BaseException) -> tuple[int, bytes]:
    assert isinstance(error, Answer), error
    return error.code, error.body


def callee(
    func_id: int,
    row: int = ff.FIRST_USER_ROW,
    fail: Callable[[BaseException], tuple[int, bytes]] = _code_and_body,
    **options: Any,
) -> ff.UserFunction:
    """A function that runs until ``answer``, and takes up to 99 objects of any kind."""
    settings: dict[str, Any] = {
        "is_async": True,
        "timeout": None,
        "counted": 0,
        "max_objects": 1 << 20,
        "max_depth": 500,
        **options,
    }
    return ff.UserFunction(
        func_id,
        row,
        f"function {func_id}",
        lambda array: Answer(0, array[len(NO_ARGUMENTS) :]),
        (lambda array: (array,),) * 100,
        0,
        lambda error: error,
        lambda answer: answer.body,
        fail,
        **settings,
    )


def callees(rows: dict[int, int]) -> dict[int, ff.UserFunction]:
    """Such functions, by func_id, with the counter rows that are given by func_id."""
    return {func_id: callee(func_id, row) for func_id, row in rows.items()}


def take_calls(frames: ff.ServerFrames) -> list[Taken]:
    """Starts the calls that may start."""
    taken: list[Taken] = []

    def start(call: ff.Call, arguments: tuple[Any, ...]) -> None:
        body = arguments[0][len(NO_ARGUMENTS) :]
        taken.append(Taken(call.function.func_id, call.request_id, body, call))

    while frames.status & ff.HAS_CALLS:
        frames.start_calls(start)
    return taken


def answer(frames: ff.ServerFrames, taken: Taken, code: int = 0, body: bytes = b"\xc0") -> None:
    if code == 0:
        frames.answer(taken.call, Answer(code, body))
    else:
        frames.fail(taken.call, Answer(code, body))


def bodies(taken: Iterable[Taken]) -> list[tuple[int, int, bytes]]:
    return [call[:3] for call in taken]
