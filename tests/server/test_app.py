"""Apps: composition, exceptions with codes, lifespans, threads, and calls without a server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import iproto
from iproto import ConfigError, ReturnCode
from tests.helpers.harness import frame, read_frame, serve_process, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OWN = 0x00030001


def pack(*objects: Any) -> bytes:
    packed: bytes = msgpack.packb(list(objects))
    return packed


class DoesNotExist(Exception):
    pass


class GoneForGood(DoesNotExist):
    pass


def shop() -> iproto.App:
    app = iproto.App()

    @app.function(0x0001, name="price")
    def price(sku: str, *, _prices: dict[str, int] | None = None) -> int:
        return len(sku)

    return app


def users() -> iproto.App:
    app = iproto.App()

    @app.function(0x0001)
    async def find(user_id: int) -> str:
        if user_id == 0:
            raise DoesNotExist("no user 0")
        if user_id == 1:
            raise GoneForGood("user 1 left")
        return f"user {user_id}"

    @app.function(0x0002)
    def count() -> int:
        return 2

    return app


# Composition.


def test_an_included_app_is_served_under_its_base_and_prefix() -> None:
    app = iproto.App()
    app.include(users(), base=0x00040000, prefix="users.")
    with serving(app) as served, served.peer() as peer:
        assert peer.ask(0x00040001, pack(7)).value == "user 7"
        assert peer.ask(0x00040002).value == 2
        reply = peer.ask(0x00040001, pack("seven"))
        assert reply.value == "users.find: Expected `int`, got `str` - at `user_id`"
        assert peer.ask(0x00000001, pack(7)).code == ReturnCode.UNSUPPORTED_COMMAND


def test_an_app_is_included_twice_under_two_names() -> None:
    app, inner = iproto.App(), users()
    app.include(inner, base=0x00040000, prefix="a.")
    app.include(inner, base=0x00050000, prefix="b.")
    assert [function.name for function in app.functions.values()] == [
        "a.find",
        "a.count",
        "b.find",
        "b.count",
    ]
    assert [function.name for function in inner.functions.values()] == ["find", "count"]


@pytest.mark.parametrize(
    ("base", "prefix", "text"),
    [
        (0, "users.", "taken by 'mine'"),
        (0x00040000, "", "the name 'find' is taken"),
        (0xFFFFFFFF, "users.", "must be an int, 0..0xffffffff"),
        (0x0000FF00, "users.", "SHUTDOWN"),
        (0x0000FF10, "users.", "reserved"),
    ],
)
def test_a_clash_adds_nothing(base: int, prefix: str, text: str) -> None:
    app = iproto.App()
    app.function(0x0002, name="mine")(lambda: None)
    app.function(0x0003, name="find")(lambda: None)
    with pytest.raises(ConfigError, match=text):
        app.include(users(), base=base, prefix=prefix)
    assert [function.name for function in app.functions.values()] == ["mine", "find"]


# Exceptions with codes.


def test_exceptions_are_answered_with_the_codes_they_have() -> None:
    app, inner = iproto.App(), users()
    inner.error(GoneForGood, code=0x5202, text="gone")
    app.error(DoesNotExist, code=0x5102)
    app.include(inner, base=0x00040000)
    with serving(app) as served, served.peer() as peer:
        assert peer.ask(0x00040001, pack(0))[2:] == (0x5102, msgpack.packb("no user 0"))
        assert peer.ask(0x00040001, pack(1))[2:] == (0x5202, msgpack.packb("gone"))


def test_an_exception_without_a_code_tells_the_client_nothing() -> None:
    app = users()
    app.error(GoneForGood, code=0x5202)
    with serving(app) as served, served.peer() as peer:
        reply = peer.ask(0x0001, pack(0))
        assert reply.code == ReturnCode.INTERNAL
        assert "no user" not in reply.value


@pytest.mark.parametrize(
    ("exception", "code", "text"),
    [
        ("DoesNotExist", 1, "takes an exception class"),
        (int, 1, "takes an exception class"),
        (iproto.LockedError, 1, "has its own code"),
        (DoesNotExist, 0, "must be an int, 1..0xffffffff"),
        (DoesNotExist, 2**32, "must be an int, 1..0xffffffff"),
        (KeyError, 3, "has the code 0x2 already"),
    ],
)
def test_a_code_that_is_none_is_refused(exception: Any, code: int, text: str) -> None:
    app = iproto.App()
    app.error(KeyError, code=2)
    with pytest.raises(ConfigError, match=text):
        app.error(exception, code=code)


# Calls without a server.


def test_calls_without_a_server_are_what_a_client_gets() -> None:
    app = users()
    app.error(GoneForGood, code=0x5202)

    @app.function(0x0003)
    def pair(a: bytes, b: set[int]) -> tuple[bytes, list[int]]:
        return a, sorted(b)

    async def main() -> None:
        assert await app.call("find", 7) == "user 7"
        assert await app.call(0x0003, b"\xff", {3, 1}) == [b"\xff", [1, 3]]
        with pytest.raises(iproto.IllegalParamsError, match="find takes 1 arguments, got 0"):
            await app.call("find")
        with pytest.raises(iproto.IllegalParamsError, match="Expected `int`"):
            await app.call("find", "seven")
        with pytest.raises(iproto.Error) as mapped:
            await app.call("find", 1)
        assert (mapped.value.code, mapped.value.text) == (0x5202, "user 1 left")
        with pytest.raises(iproto.InternalError) as failed:
            await app.call("find", 0)
        assert isinstance(failed.value.__cause__, DoesNotExist)
        with pytest.raises(KeyError, match="no function 'fnid'; there are: find"):
            await app.call("fnid")

    asyncio.run(main())


def test_a_call_without_a_server_has_its_time_out() -> None:
    app = iproto.App()
    ended = []

    @app.function(OWN, timeout=0.01)
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    @app.function(OWN + 1, timeout=60)
    async def late() -> None:
        raise TimeoutError("of its own")

    async def main() -> None:
        with pytest.raises(iproto.FunctionTimeoutError, match=r"wait ran for its limit of 0\.01 s"):
            await app.call("wait")
        with pytest.raises(iproto.InternalError):
            await app.call("late")
        await asyncio.sleep(0)
        assert ended == [True]

    asyncio.run(main())


# Threads.


def test_a_blocking_function_runs_in_a_thread_and_others_are_served(loop_name: str) -> None:
    app = iproto.App(threads=2)
    reached, go = threading.Barrier(3), threading.Event()

    @app.function(OWN, thread=True)
    def block(text: str) -> str:
        reached.wait(30)
        go.wait(30)
        return text

    with serving(app, loop=loop_name) as served, served.peer() as peer, served.peer() as other:
        peer.send(frame(OWN, pack("a"), 1) + frame(OWN, pack("b"), 2) + frame(OWN, pack("c"), 3))
        reached.wait(30)  # two run at once, and a third waits
        assert other.ask(0x00020002, pack(7)).value == ""
        reached.reset()
        go.set()
        third = threading.Thread(target=reached.wait, args=(30,))
        third.start()
        reached.wait(30)
        assert {peer.reply().value for _ in range(3)} == {"a", "b", "c"}
        third.join()


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, ValueError])
def test_whatever_a_thread_raises_is_an_answer(error: type[BaseException]) -> None:
    app = iproto.App()

    @app.function(OWN, thread=True)
    def fail() -> None:
        raise error("of its own")

    with serving(app) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.INTERNAL
        peer.send(read_frame(1))
        assert peer.reply().code == ReturnCode.OK


def test_a_call_in_a_thread_has_a_time_out() -> None:
    app = iproto.App()
    go = threading.Event()

    @app.function(OWN, thread=True, timeout=0.01)
    def block() -> bool:
        return go.wait(30)

    with serving(app) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.TIMEOUT
        go.set()


def test_what_cannot_run_in_a_thread_is_refused() -> None:
    app = iproto.App()

    async def find() -> None: ...

    with pytest.raises(ConfigError, match="is an 'async def', which does not run in a thread"):
        app.function(OWN, thread=True)(find)
    for threads in (0, 1025, "8"):
        with pytest.raises(ConfigError, match=r"it must be an int, 1\.\.1024"):
            iproto.App(threads=threads)  # type: ignore[arg-type]


# Lifespans.


def recorded(events: list[str], name: str) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: iproto.App) -> AsyncIterator[str]:
        events.append(f"{name} opens")
        yield f"state of {name}"
        events.append(f"{name} closes")

    return lifespan


def test_a_lifespan_is_open_while_the_app_is_served(loop_name: str) -> None:
    events: list[str] = []
    app = iproto.App(lifespan=recorded(events, "outer"))
    inner = iproto.App(lifespan=recorded(events, "inner"))
    app.function(OWN)(lambda: app.state)
    inner.function(OWN + 1, name="inner")(lambda: inner.state)
    app.include(inner)
    with pytest.raises(RuntimeError, match="is not being served"):
        app.state  # noqa: B018
    with serving(app, loop=loop_name) as served, served.peer() as peer:
        assert events == ["outer opens", "inner opens"]
        assert peer.ask(OWN).value == "state of outer"
        assert peer.ask(OWN + 1).value == "state of inner"
    assert events == ["outer opens", "inner opens", "inner closes", "outer closes"]
    with pytest.raises(RuntimeError, match="is not being served"):
        app.state  # noqa: B018
    with pytest.raises(RuntimeError, match="has no lifespan"):
        iproto.App().state  # noqa: B018


def test_a_lifespan_ends_after_the_last_call() -> None:
    events: list[str] = []
    app = iproto.App(lifespan=recorded(events, "app"))
    begun, go = threading.Event(), threading.Event()

    @app.function(OWN, thread=True)
    def work() -> None:
        begun.set()
        go.wait(30)
        events.append("answered")

    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(app))
        peer = stack.enter_context(served.peer())
        peer.send(frame(OWN))
        assert begun.wait(30)
        threading.Timer(0.05, go.set).start()
    assert events == ["app opens", "answered", "app closes"]


def test_a_lifespan_may_hold_a_cancel_scope() -> None:
    """That is: one task enters and leaves it."""
    tasks = []

    @contextlib.asynccontextmanager
    async def lifespan(app: iproto.App) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    with serving(iproto.App(lifespan=lifespan)):
        pass
    assert tasks[0] is tasks[1]


def test_an_app_with_a_lifespan_is_served_once_at_a_time() -> None:
    app = iproto.App(lifespan=recorded([], "app"))
    with (
        serving(app),
        pytest.raises(ConfigError, match="served by one server of a process at a time"),
        serving(app),
    ):
        pass
    with serving(app):
        pass


FAILING_APP = """
import contextlib, sys
import iproto

@contextlib.asynccontextmanager
async def lifespan(app):
    {0}
    yield

app = iproto.App(lifespan=lifespan)
"""


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_lifespan_that_fails_is_a_failed_start_in_one_line(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "failing.py").write_text(FAILING_APP.format("raise OSError('no database')"))
    served = serve_process("failing:app", *workers, cwd=tmp_path)
    with pytest.raises(AssertionError) as ended, served:
        pass
    log = str(ended.value)
    assert (
        "the app's lifespan failed at its start: OSError: no database "
        f"({tmp_path}/failing.py, line 7)" in log
    )
    assert "Traceback" not in log


BLOCKED_APP = """
import asyncio, time
import iproto

app = iproto.App()

@app.function(0x30001, thread=True, timeout=0.01)
def thread() -> None:
    time.sleep(60)

@app.function(0x30002, timeout=0.01)
async def to_thread() -> None:
    await asyncio.to_thread(time.sleep, 60)
"""


@pytest.mark.parametrize("func_id", [0x30001, 0x30002])
def test_a_thread_that_nobody_waits_for_does_not_hold_up_the_end(
    tmp_path: Path, func_id: int
) -> None:
    (tmp_path / "blocked.py").write_text(BLOCKED_APP)
    with serve_process("blocked:app", cwd=tmp_path) as running, running.peer() as peer:
        assert peer.ask(func_id).code == ReturnCode.TIMEOUT
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
    assert code == 0
    assert "threads that did not end within 3 s are cut short: " in log
