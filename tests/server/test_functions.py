"""User functions: registration, arguments, results, limits."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
import logging
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import iproto
from iproto import ConfigError, FuncID, ReturnCode
from tests.helpers.harness import Peer, frame, read_frame, serving

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = 0x00030001


def app_of(function: Callable[..., Any], **options: Any) -> iproto.App:
    app = iproto.App()
    app.function(OWN, **options)(function)
    return app


def pack(*objects: Any) -> bytes:
    return b"".join(msgpack.packb(item, datetime=True) for item in objects)


async def repeat(text: str, times: int = 2) -> str:
    return text * times


@pytest.mark.parametrize(
    "body",
    [pack("ab", 3), pack(["ab", 3])],
    ids=["objects one after the other", "one array"],
)
def test_arguments_come_in_two_shapes(body: bytes, loop_name: str) -> None:
    with serving(app_of(repeat), loop=loop_name) as served, served.peer() as peer:
        assert peer.ask(OWN, body, request_id=6) == (OWN, 6, 0, pack("ababab"))


@pytest.mark.parametrize("body", [pack("ab"), pack(["ab"])])
def test_defaults_fill_what_is_missing(body: bytes) -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == "abab"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "repeat takes 1 to 2 arguments, got 0"),
        (pack("a", 1, 2), "repeat takes 1 to 2 arguments, got 3"),
        (pack(["a", 1, 2]), "repeat takes 1 to 2 arguments, got 3"),
        (pack(1), "repeat: Expected `str`, got `int` - at `text`"),
        (pack("a", "b"), "repeat: Expected `int`, got `str` - at `times`"),
        (pack("a", True), "repeat: Expected `int`, got `bool` - at `times`"),
        (pack("a", 1.0), "repeat: Expected `int`, got `float` - at `times`"),
        (pack(b"a"), "repeat: Expected `str`, got `bytes` - at `text`"),
        (pack(None), "repeat: Expected `str`, got `None` - at `text`"),
        (b"\xa5ab", "body of 3 bytes ends within an object that begins at byte 0"),
        (pack("a") + b"\xcd\x01", "body of 4 bytes ends within an object that begins at byte 2"),
        (b"\xa5", "body of 1 bytes ends within an object that begins at byte 0"),
        (b"\xc1", "body of 1 bytes is not MsgPack: byte 0 is 0xc1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(body: bytes, text: str) -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        reply = peer.ask(OWN, body)
        assert (reply.code, reply.value) == (ReturnCode.ILLEGAL_PARAMS, text)
        assert peer.ask(OWN, pack("x")).value == "xx"


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        reply = peer.ask(OWN, b"\xa1\xff")
        assert reply.code == ReturnCode.ILLEGAL_PARAMS
        assert "utf-8" in reply.value


def test_bodies_that_nest_too_deep_or_have_odd_keys_are_refused() -> None:
    with serving(app_of(repeat)) as served, served.peer() as peer:
        for body in (b"\x91" * 100_000, b"\x81\x90\x01", b"\xdd\xff\xff\xff\xff", b"\xc7\x01\x2a"):
            assert peer.ask(OWN, body).code == ReturnCode.ILLEGAL_PARAMS


@dataclasses.dataclass
class Point:
    x: int
    y: int


def test_every_msgpack_type_goes_in_and_out() -> None:
    def echo(a: bytes, b: list[int], c: dict[str, float], d: int | None, e: datetime.datetime,
             f: Point, g: Any) -> list[Any]:  # fmt: skip
        return [a, b, c, d, e, f, g]

    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    sent = [b"\xff", [1, 2], {"k": 0.5}, None, now, {"x": 1, "y": 2}, [{"any": "thing"}]]
    with serving(app_of(echo)) as served, served.peer() as peer:
        reply = peer.ask(OWN, pack(*sent))
        assert msgpack.unpackb(reply.body, timestamp=3) == sent


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (pack([1, 2]), [1, 2]),
        (pack([[1, 2]]), [1, 2]),
        (pack([]), []),
        (pack([[]]), []),
    ],
)
def test_a_function_of_one_list_takes_it_bare_or_within_the_array(
    body: bytes, got: list[int]
) -> None:
    def same(items: list[int]) -> list[int]:
        return items

    with serving(app_of(same)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == got


@pytest.mark.parametrize("body", [b"", pack([])])
def test_a_function_without_parameters_takes_nothing(body: bytes) -> None:
    def hello() -> str:
        return "hello"

    with serving(app_of(hello)) as served, served.peer() as peer:
        assert peer.ask(OWN, body).value == "hello"
        assert peer.ask(OWN, pack(1)).value == "hello takes 0 arguments, got 1"


def test_an_error_of_the_users_own_is_answered_with_its_code(loop_name: str) -> None:
    def fail(kind: str) -> None:
        if kind == "own":
            raise iproto.Error(0x5102, "no such thing")
        raise iproto.RateLimitedError("wait 3 s")

    with serving(app_of(fail), loop=loop_name) as served, served.peer() as peer:
        reply = peer.ask(OWN, pack("own"))
        assert (reply.code, reply.value) == (0x5102, "no such thing")
        reply = peer.ask(OWN, pack("limit"))
        assert (reply.code, reply.value) == (ReturnCode.RATE_LIMITED, "wait 3 s")


class Careless(iproto.Error):
    """Does not call its base class, so that it has neither code nor text."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("secret"),
        SystemExit(3),
        asyncio.CancelledError(),
        BaseException("base"),
        GeneratorExit(),
        iproto.Error(0x5102, "a name that is not UTF-8: \udc80"),
        Careless(),
    ],
)
def test_an_unexpected_exception_is_internal_to_the_client_and_whole_in_the_log(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise error

    def broken_too() -> None:
        raise error

    app = app_of(broken)
    app.function(OWN + 1)(broken_too)
    with serving(app) as served, served.peer() as peer, caplog.at_level(logging.ERROR):
        for func_id, name in ((OWN, "broken"), (OWN + 1, "broken_too")):
            reply = peer.ask(func_id)
            assert reply.code == ReturnCode.INTERNAL
            assert reply.value == f"{name} failed; the server's log has the details"
        assert peer.read(0) == ""
    assert caplog.text.count("failed") >= 2
    assert "Traceback" in caplog.text


def test_a_result_that_msgpack_cannot_carry_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    with serving(app_of(object, name="strange")) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.INTERNAL
    assert "failed" in caplog.text


def test_async_functions_run_at_once_and_answer_when_they_are_ready(loop_name: str) -> None:
    gates: dict[int, asyncio.Event] = {}

    async def wait(number: int) -> int:
        gates.setdefault(number, asyncio.Event())
        await gates[number].wait()
        return number

    def open_gate(number: int) -> None:
        gates.setdefault(number, asyncio.Event()).set()

    app = app_of(wait)
    app.function(OWN + 1)(open_gate)
    with serving(app, loop=loop_name) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN, pack(n), request_id=n) for n in range(5)))
        for n in (3, 1, 4, 0, 2):
            peer.send(frame(OWN + 1, pack(n), request_id=100))
            answers = {reply.request_id: reply for reply in peer.replies(2)}
            assert answers.keys() == {100, n}
            assert answers[n].value == n


def test_built_in_frames_overtake_calls_that_run() -> None:
    gate = asyncio.Event()
    app = app_of(gate.wait, name="wait")
    app.function(OWN + 1)(gate.set)
    with serving(app) as served, served.peer() as peer:
        peer.send(frame(OWN, request_id=1) + read_frame(0, request_id=2))
        assert peer.reply().request_id == 2
        peer.send(frame(OWN + 1, request_id=3))
        assert {reply.request_id for reply in peer.replies(2)} == {1, 3}


def test_the_calls_of_a_connection_are_bounded_and_then_it_is_not_read(loop_name: str) -> None:
    running = most = 0
    gate = asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    app = app_of(work)
    app.function(OWN + 1)(gate.set)
    with (
        serving(app, loop=loop_name, max_calls_per_connection=4) as served,
        served.peer() as peer,
        served.peer() as other,
    ):
        calls = b"".join(frame(OWN, request_id=i) for i in range(50))
        peer.send(calls + read_frame(0, request_id=99))
        while running < 4:
            assert other.read(0) == ""
        assert other.ask(OWN + 1).code == 0
        assert {reply.request_id for reply in peer.replies(51)} == {*range(50), 99}
        assert most == 4


def test_over_the_servers_limit_calls_are_answered_overloaded() -> None:
    gate = asyncio.Event()
    app = app_of(gate.wait, name="wait")
    app.function(OWN + 1)(gate.set)
    with serving(app, max_calls=2) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN, request_id=i) for i in range(3)))
        reply = peer.reply()
        assert (reply.request_id, reply.code) == (2, ReturnCode.OVERLOADED)
        assert "2 calls are running" in reply.value
        assert iproto.OverloadedError(reply.value).retryable
        with served.peer() as other:
            assert other.ask(OWN + 1).code == ReturnCode.OVERLOADED
        served.loop.call_soon_threadsafe(gate.set)
        assert {r.request_id: r.code for r in peer.replies(2)} == {0: 0, 1: 0}
        assert peer.ask(OWN, request_id=4).code == 0


def test_a_function_that_takes_too_long_is_cancelled_and_answered_timeout(loop_name: str) -> None:
    cancelled = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    with serving(app_of(slow, timeout=0.05), loop=loop_name) as served, served.peer() as peer:
        reply = peer.ask(OWN, request_id=2)
        assert (reply.request_id, reply.code) == (2, ReturnCode.TIMEOUT)
        assert reply.value == "slow ran for its limit of 0.05 s"
        assert peer.read(0) == ""
    assert cancelled == [1]


def test_a_call_that_fails_badly_takes_no_neighbour_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise Careless

    app = app_of(broken)
    app.function(OWN + 1, name="fine")(lambda: "fine")
    with serving(app, max_calls_per_connection=4) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN + i % 2, request_id=i) for i in range(40)))
        answers = {reply.request_id: reply for reply in peer.replies(40)}
        assert {i: answers[i].code for i in range(0, 40, 2)} == dict.fromkeys(range(0, 40, 2), 2)
        assert all(answers[i].value == "fine" for i in range(1, 40, 2))
    assert "broken" in caplog.text


def test_a_timestamp_that_no_datetime_can_hold_is_a_bad_argument() -> None:
    with serving(app_of(lambda when: None, name="any")) as served, served.peer() as peer:
        reply = peer.ask(OWN, bytes.fromhex("c70cff000000007fffffffffffffff"))
        assert reply.code == ReturnCode.ILLEGAL_PARAMS


def test_a_reset_is_noticed_while_the_connection_is_not_read(loop_name: str) -> None:
    """The queue of its calls is full; nothing waits for a time-out."""
    ended: asyncio.Queue[int] = asyncio.Queue()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait(1)

    with serving(
        app_of(wait), loop=loop_name, max_calls_per_connection=2, max_queue=1024
    ) as served:
        peer = served.peer()
        peer.send(frame(OWN) * 20 + read_frame(0))
        with served.peer() as other:
            assert other.read(0) == ""
        peer.reset()
        assert [served.run(ended.get()) for _ in range(2)] == [1, 1]
        assert served.wait_closed().get("RESET") == 1


def test_a_function_that_cancels_itself_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def strange() -> None:
        raise asyncio.CancelledError

    with serving(app_of(strange)) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.INTERNAL
    assert "strange" in caplog.text


def test_calls_are_cancelled_when_their_connection_is_gone(loop_name: str) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        await events.put("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await events.put("cancelled")
            raise

    with serving(app_of(work), loop=loop_name) as served:
        peer = served.peer()
        peer.send(frame(OWN))
        assert served.run(events.get()) == "started"
        peer.reset()
        assert served.run(events.get()) == "cancelled"


def test_the_numbers_around_the_reserved_ones_are_free() -> None:
    app = iproto.App()
    app.function(0x0000FEFF, name="below")(repeat)
    app.function(0x00010000, name="above")(repeat)
    assert [*app.functions] == [0x0000FEFF, 0x00010000]


def test_registration_refuses_what_cannot_work() -> None:
    app = app_of(repeat)
    for func_id, message in (
        (int(FuncID.STORAGE_READ), "STORAGE_READ"),
        (int(FuncID.PING), "PING"),
        (0x0000FF02, r"0x0000ff02 .* reserved"),
        (0x0000FFFF, r"0x0000ffff .* reserved"),
        (OWN, "taken by 'repeat'"),
        (-1, "0..0xffffffff"),
        (2**32, "0..0xffffffff"),
        ("1", "0..0xffffffff"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.function(func_id)(repeat)  # type: ignore[arg-type]

    def variadic(*items: int) -> None: ...
    def keyword(*, item: int) -> None: ...
    def odd(item: complex) -> None: ...
    def plain() -> None: ...
    def undefined(item: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, options, message in (
        (variadic, {}, r"\*items"),
        (keyword, {}, "by position"),
        (odd, {}, "complex"),
        (undefined, {}, "Nowhere"),
        (plain, {"timeout": 1}, "async def"),
        (repeat, {"timeout": 0, "name": "a"}, "over 0"),
        (repeat, {"timeout": "1", "name": "a"}, "timeout='1'"),
        (repeat, {"timeout": True, "name": "a"}, "timeout=True"),
        (repeat, {"timeout": float("inf"), "name": "a"}, "at most 86400"),
        (repeat, {}, "the name 'repeat' is taken"),
        (repeat, {"name": "STORAGE_READ"}, "the name 'STORAGE_READ' is taken"),
        (repeat, {"name": "unknown"}, "the name 'unknown' is taken"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.function(OWN + 1, **options)(function)
    assert [*app.functions] == [OWN]


def test_a_partial_is_checked_by_what_is_left_of_its_signature() -> None:
    app = app_of(functools.partial(repeat, times=3), name="thrice")
    with serving(app) as served, served.peer() as peer:
        assert peer.ask(OWN, pack("ab")).value == "ababab"
        assert peer.ask(OWN, pack(1)).code == ReturnCode.ILLEGAL_PARAMS


def test_an_object_with_an_async_call_is_a_function() -> None:
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    with serving(app_of(Adder(), name="add")) as served, served.peer() as peer:
        assert peer.ask(OWN, pack(1, 2)).value == 3
        assert peer.ask(OWN, pack(1, "2")).code == ReturnCode.ILLEGAL_PARAMS


def test_two_servers_of_one_storage_count_each_function_under_its_name() -> None:
    storage = iproto.Storage()
    with (
        serving(app_of(lambda: 1, name="one"), storage) as first,
        serving(app_of(lambda: 2, name="two"), storage) as second,
        first.peer() as one,
        second.peer() as two,
    ):
        assert [one.ask(OWN).value, two.ask(OWN).value, two.ask(OWN).value] == [1, 2, 2]
        requests = storage.counters()["requests"]
        assert [requests[storage.row_for(name)][0] for name in ("one", "two")] == [1, 2]


def test_the_decorated_function_stays_as_it_was() -> None:
    app = iproto.App()
    assert app.function(OWN)(repeat) is repeat


def test_more_functions_than_counter_rows_work() -> None:
    app = iproto.App()
    for number in range(100):
        app.function(0x40000 + number, name=f"f{number}")(lambda: "ok")
    with serving(app) as served, served.peer() as peer:
        assert all(peer.ask(0x40000 + number).value == "ok" for number in range(100))


def test_a_method_can_be_a_function() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, step: int) -> int:
            self.count += step
            return self.count

    with serving(app_of(Counter().add)) as served, served.peer() as peer:
        assert [peer.ask(OWN, pack(2)).value for _ in range(3)] == [2, 4, 6]


def test_calls_and_replies_by_the_thousand_are_all_matched(loop_name: str) -> None:
    def ask_all(peer: Peer) -> None:
        peer.send(b"".join(frame(OWN, pack("x", n % 9), request_id=n) for n in range(5000)))
        answers = {reply.request_id: reply.value for reply in peer.replies(5000)}
        assert answers == {n: "x" * (n % 9) for n in range(5000)}

    with serving(app_of(repeat), loop=loop_name) as served, served.peer() as peer:
        ask_all(peer)
