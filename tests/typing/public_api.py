"""What type checkers make of the public API: read by mypy and pyright, never run.

A line with ``type: ignore`` is one that both must refuse: a comment without an error
is an error of its own.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import assert_type

import iproto
from iproto.address import Address
from iproto.function import Function
from iproto.storage.file import OpenFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def peers() -> None:
    listener = iproto.ListenerConfig(address=":8080", rights=("read", "call"), mode="0600")
    iproto.Config(bind=(), listener=(listener,), acl=("10.0.0.0/8=read",), allow="10.0.0.0/8")
    peer = iproto.current_peer()
    assert_type(peer, iproto.Peer | None)
    if peer is not None:
        assert_type(peer.address, str)
        assert_type(peer.uid, int | None)
        assert_type(peer.rights.permits(0x00030001), bool)


async def async_client(url: str) -> None:
    client = iproto.AsyncClient(url, dialect="vk", timeout=1.5)
    iproto.AsyncClient(url, dialect=iproto.Dialect.MAILRU)
    iproto.AsyncClient(url, ssl_context=ssl.create_default_context())
    async with client as entered:
        assert_type(entered, iproto.AsyncClient)
        assert_type(await entered.connect(timeout=1), None)
        assert_type(await entered.read(7), str)
        assert_type(await entered.read_bytes(7, timeout=0.5), bytes)
        assert_type(await entered.read_many([1, 2]), list[str])
        assert_type(await entered.read_many(range(10)), list[str])
        assert_type(await entered.read_many_bytes(iter((1, 2))), list[bytes])
        assert_type(await entered.replace(7, "text"), None)
        assert_type(await entered.replace(7, b"bytes"), None)
        assert_type(await entered.replace_many({1: "a", 2: "b"}), None)
        assert_type(await entered.replace_many([(1, "a"), (2, b"b")]), None)
        assert_type(await entered.switch_readonly(), None)
        assert_type(await entered.switch_readwrite(), None)
        assert_type(await entered.switch_maintenance(), None)
        assert_type(await entered.ping(timeout=1), None)
        assert_type(await entered.call(0x00030001, "ab", 3), Any)
        assert_type(await entered.request(iproto.FuncID.STORAGE_READ, b"\x07"), iproto.Response)
        assert_type(entered.dialect, iproto.Dialect)
    assert_type(await client.aclose(), None)

    await client.read("7")  # type: ignore[arg-type]
    await client.read(7, 1.0)  # type: ignore[call-arg]
    await client.replace(7, 7)  # type: ignore[arg-type]
    await client.replace_many({"1": "a"})  # type: ignore[arg-type]
    await client.request(1, "text")  # type: ignore[arg-type]
    with client:  # type: ignore[attr-defined]
        pass


def blocking_client(url: str) -> None:
    client = iproto.Client(url, dialect="auto", timeout=1.5)
    with client as entered:
        assert_type(entered, iproto.Client)
        assert_type(entered.connect(timeout=1), None)
        assert_type(entered.read(7), str)
        assert_type(entered.read_bytes(7, timeout=0.5), bytes)
        assert_type(entered.read_many([1, 2]), list[str])
        assert_type(entered.read_many(range(10)), list[str])
        assert_type(entered.read_many_bytes(iter((1, 2))), list[bytes])
        assert_type(entered.replace(7, "text"), None)
        assert_type(entered.replace(7, b"bytes"), None)
        assert_type(entered.replace_many({1: "a", 2: "b"}), None)
        assert_type(entered.replace_many([(1, "a"), (2, b"b")]), None)
        assert_type(entered.switch_readonly(), None)
        assert_type(entered.switch_readwrite(), None)
        assert_type(entered.switch_maintenance(), None)
        assert_type(entered.ping(timeout=1), None)
        assert_type(entered.call(0x00030001, "ab", 3), Any)
        assert_type(entered.request(iproto.FuncID.STORAGE_READ, b"\x07"), iproto.Response)
        assert_type(entered.dialect, iproto.Dialect)
    assert_type(client.close(), None)

    client.read("7")  # type: ignore[arg-type]
    client.read(7, 1.0)  # type: ignore[call-arg]
    client.replace_many({"1": "a"})  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def lifespan(app: iproto.App) -> AsyncIterator[list[int]]:
    yield [1]


async def functions() -> None:
    app = iproto.App()

    @app.function(0x00030001)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    @app.function(0x00030002, name="total")
    def add(items: list[int]) -> int:
        return sum(items)

    # A decorated function is what it was.
    assert_type(await repeat("ab", 3), str)
    assert_type(add([1, 2]), int)
    assert_type(app.functions, dict[int, Function])

    add(["1"])  # type: ignore[list-item]
    app.function(0x00030003, thread=True, concurrency=4, queue_timeout=0.5)(len)
    assert_type(app.state, Any)
    assert_type(app.include(iproto.App(threads=4), base=0x00040000, prefix="a."), None)
    assert_type(app.error(KeyError, code=0x5102, text="no such thing"), None)
    assert_type(await app.call("total", [1, 2]), Any)
    async with app.running():
        pass
    iproto.App(lifespan=lifespan)

    app.error("KeyError", code=2)  # type: ignore[arg-type]
    app.function("0x00030003")  # type: ignore[arg-type]
    app.function(0x00030003)(7)  # type: ignore[type-var]


async def server(config: iproto.Config, app: iproto.App, storage: iproto.Storage) -> None:
    async with iproto.Server(config, app, storage) as entered:
        assert_type(entered, iproto.Server)
        assert_type(entered.addresses, tuple[Address, ...])
        assert_type(entered.metrics_address, Address | None)
        assert_type(entered.ready, bool)
        assert_type(entered.silent_seconds, float)
        assert_type(entered.connection_count, int)
        assert_type(entered.config, iproto.Config)
        assert_type(entered.storage, iproto.Storage)
        assert_type(await entered.start(), None)
        assert_type(await entered.drain(5), bool)
        assert_type(await entered.wait_closed(), None)
        assert_type(await entered.close(), None)
    assert_type(iproto.run(config), int)
    assert_type(iproto.run(config, app=app, storage=storage), int)

    iproto.Config("127.0.0.1:8080")  # type: ignore[call-arg]
    iproto.Config(bind=8080)  # type: ignore[arg-type]
    iproto.Config(no_such_setting=1)  # type: ignore[call-arg]
    config.bind = "127.0.0.1:8081"  # type: ignore[misc]


def storage(path: Path) -> None:
    with iproto.open_storage(path, workers=2) as file:
        assert_type(file, OpenFile)
        assert_type(file.storage, iproto.Storage)
    storage = iproto.Storage()
    assert_type(storage.read(7), bytes)
    assert_type(storage.replace(7, b"bytes"), None)
    assert_type(storage.state, iproto.State)
    assert_type(storage.switch(iproto.State.READ_ONLY), None)

    storage.replace(7, "text")  # type: ignore[arg-type]
    storage.state = iproto.State.READ_ONLY  # type: ignore[misc]


def vocabulary(response: iproto.Response, reason: iproto.CloseReason) -> None:
    assert_type(iproto.FuncID.PING, Literal[iproto.FuncID.PING])
    assert_type(iproto.FuncID(0x0000FF00), iproto.FuncID)
    assert_type(iproto.ReturnCode(0x0401), iproto.ReturnCode)
    assert_type(iproto.CompletionStatus(1), iproto.CompletionStatus)
    assert_type(response.header, iproto.Header)
    assert_type(response.header.request_id, int)
    assert_type(response.return_code, int)
    assert_type(response.body, bytes)
    assert_type(iproto.Request(iproto.Header(1, 2, 3), b"").header.func_id, int)
    assert_type(reason is iproto.CloseReason.IDLE, bool)
    assert_type(iproto.__version__, str)


def errors(
    error: iproto.Error,
    limited: iproto.RateLimitedError,
    lost: iproto.ConnectionLostError | iproto.CallTimeoutError | iproto.ClientClosedError,
    other: iproto.ConnectError | iproto.ProtocolError | iproto.DialectError | iproto.TextError,
    config: iproto.ConfigError,
) -> object:
    assert_type(error.code, int)
    assert_type(error.text, str)
    assert_type(error.item, int | None)
    assert_type(error.retryable, bool)
    assert_type(error.may_have_executed, bool)
    assert_type(limited.retry_after, float | None)
    assert_type(lost.may_have_executed, bool)
    assert_type(other.may_have_executed, bool)
    assert_type(config.may_have_executed, bool)

    # Each is what it can be caught as.
    package: list[iproto.IprotoError] = [error, limited, lost, other, config]
    too_long = iproto.ReplyTooLongError("over the limit", may_have_executed=True)
    assert_type(too_long.item, int | None)
    transport: list[iproto.TransportError] = [lost, too_long]
    values: list[ValueError] = [config, iproto.TextError("not UTF-8")]
    system: list[OSError] = [
        iproto.ConnectError("nobody there"),
        iproto.CallTimeoutError("late", may_have_executed=True),
    ]
    answers: list[iproto.Error] = [
        # generated: exceptions (from schema/iproto.toml, by make generate)
        iproto.FunctionTimeoutError("text"),
        iproto.IllegalParamsError("text"),
        iproto.InternalError("text"),
        iproto.LockedError("text"),
        iproto.NotPermittedError("text"),
        iproto.OutOfRangeError("text"),
        iproto.OutcomeUnknownError("text"),
        iproto.OverloadedError("text"),
        iproto.RateLimitedError("text"),
        iproto.ReadOnlyError("text"),
        iproto.UnavailableError("text"),
        iproto.UnsupportedCommandError("text"),
        # end of exceptions
    ]

    iproto.ReadOnlyError(0x0401, "text")  # type: ignore[call-arg, arg-type]
    iproto.CallTimeoutError("late")  # type: ignore[call-arg]
    return package, transport, values, system, answers
