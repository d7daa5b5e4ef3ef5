"""TLS of both clients: which servers they talk to, and what a call says when it is another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto import Client, ConfigError, ConnectError, ConnectionLostError, TransportError
from iproto.client.url import TLS, parse_url
from tests.helpers.clients import both, calling
from tests.helpers.harness import PATIENCE, Served, serve_process, serving, wait_until
from tests.helpers.tls import Authority, Pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def url(served: Served, **parameters: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"iprotos://{served.address}?{query}"


def secured(pair: Pair, **settings: Any) -> Any:
    return serving(tls_cert=pair.cert, tls_key=pair.key, **settings)


@both
async def test_every_call_goes_through_tls(kind: str, authority: Authority) -> None:
    app = iproto.App()

    @app.function(0x30001)
    def echo(data: bytes) -> bytes:
        return data

    with secured(authority.issue(), app=app) as served:
        async with calling(kind, url(served, ca=authority.path, dialect="auto")) as client:
            await client.replace(1, "one")
            assert await client.read(1) == "one"
            await client.replace_many({index: f"value {index}" for index in range(500)})
            assert await client.read_many(range(500)) == [f"value {index}" for index in range(500)]
            for size in (1, 20_000, 900_000):
                assert await client.call(0x30001, os.urandom(size)) is not None
            data = os.urandom(900_000)
            assert await client.call(0x30001, data) == data
            await client.ping()


@both
async def test_a_client_shows_its_certificate(kind: str, authority: Authority) -> None:
    pair = authority.issue()
    mine = authority.issue("client", file="client")
    with secured(pair, tls_client_ca=authority.path) as served:
        good = url(served, ca=authority.path, cert=mine.cert, key=mine.key)
        async with calling(kind, good) as client:
            await client.ping()
        async with calling(kind, url(served, ca=authority.path)) as client:
            # With TLS 1.3 the server's refusal comes after the client's handshake is done.
            with pytest.raises(
                (ConnectError, ConnectionLostError), match=r"the peer requires a certificate|reset"
            ):
                await client.ping()


def wrong_name(authority: Authority, folder: Path) -> tuple[Pair, str]:
    return authority.issue("elsewhere.example"), authority.path


def unknown(authority: Authority, folder: Path) -> tuple[Pair, str]:
    return authority.issue(), Authority(folder, "other").path


@both
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (wrong_name, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        (unknown, "unable to get local issuer certificate"),
    ],
)
async def test_a_server_that_is_another_is_not_talked_to(
    kind: str,
    authority: Authority,
    tmp_path: Path,
    make: Callable[[Authority, Path], tuple[Pair, str]],
    text: str,
) -> None:
    pair, ca = make(authority, tmp_path)
    with secured(pair) as served:
        async with calling(kind, url(served, ca=ca)) as client:
            with pytest.raises(ConnectError, match=f"TLS failed: .*{text}"):
                await client.replace(0, "secret")
        assert served.server.storage.read(0) == b""


@both
async def test_the_name_to_look_for_can_be_another_than_the_hosts(
    kind: str, authority: Authority
) -> None:
    with secured(authority.issue("elsewhere.example")) as served:
        named = url(served, ca=authority.path, server_name="elsewhere.example")
        async with calling(kind, named) as client:
            await client.ping()


@both
async def test_an_expired_certificate_is_refused(kind: str, authority: Authority) -> None:
    """By the client: the server would not even start with one, so another one stands for it."""
    pair = authority.issue(expired=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept_once, args=(listener, context))
        thread.start()
        port = listener.getsockname()[1]
        async with calling(kind, f"iprotos://127.0.0.1:{port}?ca={authority.path}") as client:
            with pytest.raises(ConnectError, match="certificate has expired"):
                await client.ping()
        thread.join(PATIENCE)


def accept_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    sock, _ = listener.accept()
    with sock, contextlib.suppress(OSError):
        context.wrap_socket(sock, server_side=True).close()


@both
async def test_tls_at_a_plain_port_and_plain_bytes_at_a_tls_port_fail(
    kind: str, authority: Authority
) -> None:
    with serving(idle_timeout=0.5) as plain:
        async with calling(kind, url(plain, ca=authority.path)) as client:
            with pytest.raises(ConnectError):
                await client.ping()
    with secured(authority.issue()) as served:
        async with calling(kind, served.url) as client:
            with pytest.raises(TransportError):
                await client.ping()


@both
async def test_a_context_of_the_users_own_takes_the_place_of_files(
    kind: str, authority: Authority
) -> None:
    with secured(authority.issue()) as served:
        context = authority.context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        async with calling(kind, url(served), ssl_context=context) as client:
            await client.ping()
        with pytest.raises(ConfigError, match="an ssl_context is for TLS; write iprotos://"):
            Client(served.url, ssl_context=context)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("ca=/nowhere", "cannot use the authorities in /nowhere: No such file or directory"),
        ("cert=/nowhere", "cannot use certificate /nowhere with key /nowhere: No such file"),
        ("key=/nowhere", "has a key and no certificate"),
        ("ca=", "has no value"),
        ("verify=no", "unknown; use dialect=.*, and ca, cert, key, server_name"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_at_once(query: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Client(f"iprotos://127.0.0.1?{query}")


def test_a_mismatched_pair_is_refused(authority: Authority) -> None:
    one, other = authority.issue(file="one"), authority.issue(file="other")
    with pytest.raises(ConfigError, match="key values mismatch"):
        Client(f"iprotos://127.0.0.1?cert={one.cert}&key={other.key}")


def test_urls_of_tls() -> None:
    target = parse_url("iprotos://host?ca=/a%20b&cert=c&key=k&server_name=n&timeout=2")
    assert target.tls == TLS("/a b", "c", "k", "n")
    assert target.url == "iprotos://host:8080"
    assert parse_url("iprotos://host").tls == TLS()
    assert parse_url("iproto://host").tls is None
    for wrong in ("iproto://host?ca=x", "iproto+unix:///path?server_name=x"):
        with pytest.raises(ConfigError, match="is for TLS; write iprotos://"):
            parse_url(wrong)


@both
async def test_calls_outlive_a_rolling_restart(kind: str, authority: Authority) -> None:
    """None fails: the end is announced within TLS as without."""
    pair = authority.issue()
    options = ("--workers", "2", "--tls-cert", pair.cert, "--tls-key", pair.key)
    with serve_process(*options) as running:
        address = running.addresses[0]
        async with calling(kind, f"iprotos://{address}?ca={authority.path}") as client:
            await client.ping()
            running.process.send_signal(signal.SIGHUP)
            restarted = threading.Thread(target=running.wait_for, args=(r"INFO.* restarted$",))
            restarted.start()
            calls = 0
            while restarted.is_alive():
                await client.replace(calls % 1000, str(calls))
                calls += 1
            assert calls > 10
        wait_until(lambda: not restarted.is_alive())
