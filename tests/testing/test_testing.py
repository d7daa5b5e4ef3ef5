"""`iproto.testing`: what a service's own tests use, as they use it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto.testing import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.testing import RunningServer

pytest_plugins = ["pytester"]

OWN = 0x00030001


def app() -> iproto.App:
    made = iproto.App()

    @made.function(OWN)
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    return made


@pytest.fixture(params=["vk", "mailru"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serve(app(), dialect=request.param) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[iproto.Client]:
    with iproto.Client(server.url, timeout=30) as found:
        yield found


def test_everything_works_as_without_a_fault(server: RunningServer, client: iproto.Client) -> None:
    assert client.call(OWN, "ab", 3) == "ababab"
    client.replace(7, "hello")
    assert server.storage.read(7) == b"hello"
    assert client.read_many([6, 7]) == ["", "hello"]
    client.ping()
    with pytest.raises(iproto.OutOfRangeError):
        client.read(1000)


def test_a_call_is_answered_with_an_error_and_not_executed(
    server: RunningServer, client: iproto.Client
) -> None:
    server.faults.error("STORAGE_REPLACE", iproto.ReturnCode.OVERLOADED, "busy", times=1)
    with pytest.raises(iproto.OverloadedError, match="busy"):
        client.replace(7, "lost")
    assert server.storage.read(7) == b""
    client.replace(7, "kept")
    assert server.storage.read(7) == b"kept"


def test_a_connection_is_cut_before_a_call_is_executed_or_after(
    server: RunningServer, client: iproto.Client
) -> None:
    for executed in (False, True):
        server.storage.replace(7, b"")
        server.faults.cut("STORAGE_REPLACE", executed=executed)
        with pytest.raises(iproto.ConnectionLostError):
            client.replace(7, "x")
        assert server.storage.read(7) == (b"x" if executed else b"")
        assert client.call(OWN, "ab") == "abab"


def test_a_reply_is_late_and_others_are_not(server: RunningServer) -> None:
    server.faults.delay("repeat", 0.2)

    async def main() -> None:
        async with iproto.AsyncClient(server.url, timeout=30) as client:
            begun = time.monotonic()
            late = asyncio.ensure_future(client.call(OWN, "ab"))
            assert await client.read(7) == ""
            assert not late.done()
            assert await late == "abab"
            assert time.monotonic() - begun >= 0.2

    asyncio.run(main())


def test_the_last_fault_that_fits_counts_until_all_are_cleared(
    server: RunningServer, client: iproto.Client
) -> None:
    server.faults.error(None, 0x5102)
    server.faults.error(OWN, 0x5202, times=1)
    for code in (0x5202, 0x5102):
        with pytest.raises(iproto.Error) as refused:
            client.call(OWN, "ab")
        assert refused.value.code == code
    server.faults.clear()
    assert client.call(OWN, "ab") == "abab"
    with pytest.raises(KeyError, match=r"no function 'repaet'; there are: .*repeat"):
        server.faults.cut("repaet")


def test_a_start_that_fails_fails_the_test() -> None:
    with pytest.raises(iproto.ConfigError, match="max_body"), serve(max_body=-1):
        pass


SUITE = """
import pytest
import iproto

pytest_plugins = ["iproto.testing.fixtures"]

app = iproto.App()

@app.function(0x30001)
def total(items: list[int]) -> int:
    return sum(items)
"""

TESTS = """
import iproto

def test_total(iproto_client):
    assert iproto_client.call(0x30001, [1, 2]) == 3

def test_dialect(iproto_server):
    assert "mailru" in iproto_server.url

def test_lost(iproto_server, iproto_client):
    iproto_server.faults.cut("total")
    try:
        iproto_client.call(0x30001, [1, 2])
    except iproto.ConnectionLostError as error:
        assert error.may_have_executed
"""

OVERRIDES = """
@pytest.fixture
def iproto_app():
    return app

@pytest.fixture
def iproto_settings():
    return {"dialect": "mailru"}
"""


def test_the_fixtures_serve_the_app_of_a_suite(pytester: Any) -> None:
    pytester.makeconftest(SUITE + OVERRIDES)
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=3)


def test_without_an_app_the_fixtures_serve_the_storage(pytester: Any) -> None:
    pytester.makeconftest(SUITE)
    pytester.makepyfile(
        "def test_storage(iproto_server, iproto_client):\n"
        "    iproto_client.replace(7, 'x')\n"
        "    assert iproto_server.storage.read(7) == b'x'\n"
    )
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)
