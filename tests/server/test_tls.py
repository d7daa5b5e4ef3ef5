"""TLS at the server: what is taken, what is refused, and that replies and bounds are as without."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import threading
import warnings
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import iproto
from iproto import CloseReason, ConfigError, FuncID
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    Served,
    frame,
    read_frame,
    replace_frame,
    serve_process,
    serving,
    wait_until,
)
from tests.helpers.tls import Authority, Pair, SecurePeer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from iproto.address import Address

OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl's command")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue()


def settings(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"tls_cert": pair.cert, "tls_key": pair.key, **more}


def test_requests_are_answered_in_order_however_the_bytes_come(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    dice = random.Random(1)
    requests = [replace_frame(i % 10, f"value {i}", i) + read_frame(i % 10, i) for i in range(300)]
    data = b"".join(requests)
    with (
        serving(loop=loop_name, **settings(pair)) as served,
        SecurePeer(served.address, authority.context()) as peer,
    ):
        assert peer.tls.version() == "TLSv1.3"
        at = 0
        while at < len(data):
            size = dice.choice((1, 5, 12, 100, 20_000))
            peer.send(data[at : at + size])
            at += size
        for i in range(300):
            assert (peer.reply().code, peer.reply().value) == (0, f"value {i}")


def test_large_batches_and_replies_pass_through_small_windows(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    """More replies than any buffer has room for, to a client that reads late."""
    count = 20_000
    app = iproto.App()

    @app.function(0x30001)
    def blob(size: int) -> bytes:
        return b"x" * size

    with (
        serving(app, loop=loop_name, **settings(pair)) as served,
        SecurePeer(served.address, authority.context(), receive_buffer=4096) as peer,
    ):
        peer.ask(FuncID.STORAGE_REPLACE, msgpack.packb(7) + msgpack.packb("y" * 250))
        sender = threading.Thread(target=lambda: peer.send(read_frame(7) * count))
        sender.start()
        sender.join(0.2)
        for _ in range(count):
            assert peer.reply().value == "y" * 250
        sender.join(PATIENCE)
        for size in (1_000_000, 3_000_000):
            assert peer.ask(0x30001, msgpack.packb([size])).value == b"x" * size


def test_replies_come_after_the_clients_close_notify_and_after_a_bare_end(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    app = iproto.App()
    gate = threading.Event()

    @app.function(0x30001)
    async def later() -> str:
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return "answered"

    with serving(app, loop=loop_name, **settings(pair)) as served:
        for is_notified in (True, False):
            gate.clear()
            context = authority.context()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            with Peer(served.address) as peer:
                handshake(peer.sock, tls, incoming, outgoing)
                tls.write(frame(0x30001, b"\x90"))
                if is_notified:
                    with pytest.raises(ssl.SSLWantReadError):
                        tls.unwrap()
                peer.send(outgoing.read())
                peer.finish_sending()
                gate.set()
                rest = peer.rest()
            incoming.write(rest)
            incoming.write_eof()
            assert tls.read(100).endswith(b"answered")
        assert served.wait_closed(2) == {"CLIENT": 2}


def handshake(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    while True:
        try:
            tls.do_handshake()
            sock.sendall(outgoing.read())
            return
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))


def test_a_drain_answers_what_had_arrived_and_says_that_nothing_follows(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    with serving(loop=loop_name, **settings(pair)) as served:
        context = authority.context()
        context.check_hostname = False
        peer = SecurePeer(served.address, context)
        marked = 0xFF010000
        with peer:
            assert peer.ask(FuncID.PING, request_id=marked).func_id == FuncID.PING
            # Ten requests lie in the socket when the drain begins: the loop is held meanwhile.
            hold, held = threading.Event(), threading.Event()

            def hold_up() -> None:
                held.set()
                hold.wait(PATIENCE)

            served.loop.call_soon_threadsafe(hold_up)
            assert held.wait(PATIENCE)
            peer.send(b"".join(read_frame(0, i) for i in range(10)))
            drained = threading.Thread(target=lambda: served.run(served.server.drain()))
            drained.start()
            hold.set()
            assert [peer.reply().request_id for _ in range(10)] == [*range(10)]
            assert peer.reply().func_id == FuncID.SHUTDOWN
            assert peer.tls.recv(1) == b""  # by close_notify
        drained.join(PATIENCE)
        assert served.closed() == {"DRAIN": 1}


# Who may connect.


def test_a_client_without_a_certificate_that_is_trusted_is_refused(
    loop_name: str, authority: Authority, pair: Pair, tmp_path: Path, caplog: Any
) -> None:
    other = Authority(tmp_path, "other")
    good = authority.issue("client", file="client")
    strangers = other.issue("client", file="stranger")
    expired = authority.issue("client", file="expired", expired=True)
    with serving(loop=loop_name, **settings(pair, tls_client_ca=authority.path)) as served:
        with SecurePeer(served.address, authority.context(good)) as peer:
            assert peer.read(0) == ""
        for wrong in (None, strangers, expired):
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):  # noqa: SIM117
                with SecurePeer(served.address, authority.context(wrong)) as peer:
                    peer.read(0)
        served.wait_closed(4)
        assert served.closed() == {"CLIENT": 1, "TLS_FAILED": 3}
    for text in (
        "it has no certificate, and one is required",
        "the peer's certificate is refused: certificate has expired",
        "the peer's certificate is refused: unable to get local issuer certificate",
    ):
        assert re.search(rf"WARNING.* the TLS handshake with .* failed: {text}", caplog.text)


@pytest.mark.parametrize("name", ["http", "iproto", "garbage", "tls 1.1"])
def test_what_is_no_modern_tls_ends_at_once_and_the_log_says_what_it_was(
    name: str, authority: Authority, pair: Pair, caplog: Any
) -> None:
    hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
    data, text = {
        "http": (b"GET / HTTP/1.1\r\n\r\n", "speaks no TLS; it must use iprotos:// here"),
        "iproto": (read_frame(0), "speaks no TLS; it must use iprotos:// here"),
        "garbage": (hello, "failed: "),
        "tls 1.1": (b"", "it takes no version of TLS that is allowed, which is 1.2 at least"),
    }[name]
    with serving(**settings(pair)) as served:
        if data:
            with Peer(served.address) as peer:
                peer.send(data)
                peer.rest()
        else:
            context = authority.context()
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                SecurePeer(served.address, context)
        assert served.wait_closed() == {"TLS_FAILED": 1}
    assert text in caplog.text


def test_tls_at_a_plain_port_is_named_in_the_log(authority: Authority, caplog: Any) -> None:
    with serving(idle_timeout=0.5) as served:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            SecurePeer(served.address, authority.context())
        served.wait_closed()
    assert " spoke TLS where the server does not; it must use iproto:// here" in caplog.text


def test_a_unix_socket_beside_stays_plain(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    both = ("127.0.0.1:0", f"unix:{tmp_path}/socket")
    with serving(bind=both, **settings(pair)) as served:
        with Peer(served.server.addresses[1]) as peer:
            assert peer.read(0) == ""
        with SecurePeer(served.address, authority.context()) as peer:
            assert peer.read(0) == ""


def test_listeners_have_tls_or_not_as_each_says(authority: Authority, pair: Pair) -> None:
    binds = ("127.0.0.1:0", "127.0.0.1:0?tls=off", "127.0.0.1:0?tls=on")
    with serving(bind=binds, **settings(pair)) as served:
        default, plain, secure = served.server.addresses
        for address in (default, secure):
            with SecurePeer(address, authority.context()) as peer:
                assert peer.read(0) == ""
        with Peer(plain) as bare:
            assert bare.read(0) == ""
    for wrong, text in (
        ("127.0.0.1:0?tls=maybe", "tls of 127.0.0.1:0 is 'maybe'; it must be true or false"),
        ("unix:/x?tls=on", "tls of unix:/x: only a TCP address can have it"),
    ):
        with pytest.raises(ConfigError, match=re.escape(text)):
            iproto.Config(bind=wrong)
    with pytest.raises(ConfigError, match="a listener with tls needs tls_cert"):
        asyncio.run(iproto.Server(iproto.Config(bind="127.0.0.1:0?tls=on")).start())


def test_rights_go_by_the_name_in_a_certificate_that_was_checked(
    authority: Authority, pair: Pair
) -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def whoami() -> str | None:
        peer = iproto.current_peer()
        return None if peer is None else peer.tls_name

    reader = authority.issue("reader.example", file="reader")
    caller = authority.issue(common_name="caller", file="caller")
    acl = ("name:reader.example=read", "name:localhost=call")
    rules = settings(pair, tls_client_ca=authority.path, acl=acl)
    with serving(app, **rules) as served:
        with SecurePeer(served.address, authority.context(reader)) as peer:
            assert peer.read(0) == ""
            peer.send(replace_frame(0, "x"))
            assert peer.reply().code == iproto.ReturnCode.NOT_PERMITTED
        with SecurePeer(served.address, authority.context(caller)) as peer:
            assert peer.ask(0x30001, b"\x90").value == "localhost"
            assert peer.ask(FuncID.STORAGE_READ, b"\x00").code == iproto.ReturnCode.NOT_PERMITTED


# Bounds.


def test_handshakes_are_bounded_in_number_and_time(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    limits = settings(pair, max_tls_handshakes=3, tls_handshake_timeout=0.3)
    with serving(loop=loop_name, **limits) as served:
        silent = [Peer(served.address) for _ in range(3)]
        wait_until(lambda: served.server.connection_count == 3)
        with Peer(served.address) as peer:
            assert peer.rest() == b""
        assert served.wait_closed(1) == {"TLS_BUSY": 1}
        for peer in silent:
            assert peer.rest() == b""
            peer.sock.close()
        assert served.wait_closed(4) == {"TLS_BUSY": 1, "TLS_TIMEOUT": 3}
        with SecurePeer(served.address, authority.context()) as peer:
            assert peer.read(0) == ""


def test_clients_that_go_in_the_midst_of_a_handshake_leave_nothing(
    loop_name: str, authority: Authority, pair: Pair
) -> None:
    with serving(loop=loop_name, **settings(pair)) as served:
        hello = client_hello(authority.context())
        for end in ("close", "reset"):
            for size in (0, 1, len(hello) - 1, len(hello)):
                peer = Peer(served.address)
                peer.send(hello[:size])
                if end == "close":
                    peer.sock.close()
                else:
                    peer.reset()
        served.wait_closed(8)
        assert served.server.connection_count == 0
        with SecurePeer(served.address, authority.context()) as peer:
            assert peer.read(0) == ""


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_record_that_was_changed_on_the_way_ends_the_connection(
    loop_name: str, authority: Authority, pair: Pair, caplog: Any
) -> None:
    with serving(loop=loop_name, **settings(pair)) as served:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with Peer(served.address) as peer:
            handshake(peer.sock, tls, incoming, outgoing)
            tls.write(replace_frame(0, "changed"))
            record = bytearray(outgoing.read())
            record[-1] ^= 1
            peer.send(bytes(record))
            peer.rest()
        assert served.wait_closed() == {"TLS_FAILED": 1}
        assert served.server.storage.read(0) == b""
    assert " failed: decryption failed or bad record mac" in caplog.text


def test_a_client_that_never_reads_is_closed_as_without_tls(
    authority: Authority, pair: Pair
) -> None:
    with serving(**settings(pair, idle_timeout=0.5)) as served:
        context = authority.context()
        with SecurePeer(served.address, context, receive_buffer=4096) as peer:
            peer.ask(FuncID.STORAGE_REPLACE, msgpack.packb(7) + msgpack.packb("y" * 250))
            peer.sock.settimeout(0.2)
            with contextlib.suppress(OSError):  # the time-out, or that it is closed
                while True:
                    peer.send(read_frame(7) * 1000)
            assert served.wait_closed() == {"SLOW_READER": 1}


# Files.


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", "cannot read certificate .*: No such file or directory"),
        ("no key", "cannot read private key .*: No such file or directory"),
        ("garbage", "cannot be loaded .*; name a pair of files in PEM"),
        ("mismatch", "private key .* does not belong to certificate"),
        ("expired", "is refused: certificate has expired; get a new one"),
        ("early", "is refused: certificate is not yet valid; get a new one, or set the clock"),
        ("encrypted", "private key .* is encrypted; nobody is there to give a password"),
        ("no ca", "cannot read the authorities of clients in .*: No such file"),
        ("empty ca", "the authorities of clients in .* cannot be loaded|has no certificate"),
    ],
)
def test_a_wrong_file_ends_the_start_in_a_clear_line(
    change: str, text: str, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    files = spoil(change, tmp_path, authority, pair)
    with pytest.raises(ConfigError, match=text) as caught, serving(**files):
        pass
    assert "\n" not in str(caught.value)


def spoil(change: str, folder: Path, authority: Authority, pair: Pair) -> dict[str, Any]:
    """Makes one of the files of a pair wrong; the settings that name them."""
    files = settings(pair)
    if change == "missing":
        os.unlink(pair.cert)
    elif change == "no key":
        os.unlink(pair.key)
    elif change == "garbage":
        (folder / "server.crt").write_text("no certificate")
    elif change == "mismatch":
        shutil.copy(authority.issue(file="other").key, pair.key)
    elif change == "expired":
        authority.issue(expired=True)
    elif change == "early":
        authority.issue(early=True)
    elif change == "encrypted":
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl's command")
        done = subprocess.run(
            ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:x"],
            capture_output=True,
            check=True,
        )
        (folder / "server.key").write_bytes(done.stdout)
    elif change == "no ca":
        files["tls_client_ca"] = str(folder / "nowhere")
    elif change == "empty ca":
        files["tls_client_ca"] = str(folder / "empty")
        (folder / "empty").touch()
    return files


@pytest.mark.parametrize("alone", ["tls_key", "tls_client_ca"])
def test_a_key_or_an_authority_without_a_certificate_is_refused(alone: str) -> None:
    config = iproto.Config(bind="127.0.0.1:0", **{alone: "x"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="need tls_cert; name the certificate"):
        asyncio.run(iproto.Server(config).start())


def serial(address: Address, authority: Authority) -> str:
    with SecurePeer(address, authority.context()) as peer:
        certificate: Any = peer.tls.getpeercert()
        return str(certificate["serialNumber"])


@pytest.mark.parametrize("workers", [None, 2])
def test_certificates_are_loaded_anew_without_touching_connections_and_wrong_ones_are_not(
    tmp_path: Path, authority: Authority, pair: Pair, workers: int | None
) -> None:
    """By the change of the files alone; without workers, by SIGHUP at once."""
    options = ["--tls-cert", pair.cert, "--tls-key", pair.key]
    if workers is not None:
        options += ["--workers", str(workers)]
    with serve_process(*options) as running:
        address = iproto.address.parse_address(running.addresses[0])
        first = serial(address, authority)
        stop = threading.Event()
        failures: list[BaseException] = []
        calls = [0]

        def call() -> None:
            try:
                with SecurePeer(address, authority.context()) as peer:
                    while not stop.is_set():
                        assert peer.read(0) == ""
                        calls[0] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: calls[0] > 100)
        for change, text in (
            ("expired", "the certificate from before stays in use: .* has expired"),
            ("mismatch", "the certificate from before stays in use: .* does not belong to"),
        ):
            spoil(change, tmp_path, authority, pair)
            if workers is None:
                running.process.send_signal(signal.SIGHUP)
            running.wait_for(text)
            assert serial(address, authority) == first
        second = authority.issue()
        assert second == pair
        running.wait_for("was loaded anew, for new connections; it expires on")
        wait_until(lambda: serial(address, authority) != first)
        before = calls[0]
        wait_until(lambda: calls[0] > before + 100)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 0
        assert "Traceback" not in log


# As openssl's command sees it.


def s_client(address: Address, *options: str, data: bytes = b"") -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", str(address), *options],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture
def served(pair: Pair) -> Iterator[Served]:
    with serving(**settings(pair)) as running:
        yield running


@OPENSSL
@pytest.mark.parametrize(
    ("options", "is_taken"),
    [
        (("-tls1_3",), True),
        (("-tls1_2",), True),
        (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), False),
        (("-tls1", "-cipher", "ALL:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "AES128-GCM-SHA256"), False),  # no forward secrecy
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"), False),  # no AEAD
        (("-tls1_2", "-cipher", "NULL:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "3DES:RC4:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"), True),
        (("-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"), True),
    ],
)
def test_no_old_protocol_and_no_weak_cipher_is_taken(
    served: Served, options: tuple[str, ...], is_taken: bool
) -> None:
    text = s_client(served.address, *options)
    assert ("Cipher is (NONE)" not in text and "New, TLSv1" in text) == is_taken, text


@OPENSSL
def test_nothing_is_resumed_renegotiated_or_sent_early(served: Served) -> None:
    for version in ("-tls1_3", "-tls1_2"):
        text = s_client(served.address, version)
        assert "New Session Ticket arrived" not in text
        assert "TLS session ticket:" not in text
        assert "Compression: NONE" in text
        assert "Max Early Data" not in text or "Max Early Data: 0" in text
    # R asks for a renegotiation.
    text = s_client(served.address, "-tls1_2", data=b"R\n")
    assert "RENEGOTIATING" in text
    assert "no renegotiation" in text
    assert served.wait_closed(3) == {"CLIENT": 3} or CloseReason.TLS_FAILED.name in served.closed()


def test_the_serving_line_says_that_it_is_tls(
    pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), serving(**settings(pair)):
        assert "(dialect vk, TLS, 0 user functions)" in caplog.text
