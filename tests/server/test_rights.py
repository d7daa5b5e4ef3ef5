"""Rights: which function may be called where, and by whom."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

import iproto
from iproto import Config, FuncID, ListenerConfig, ReturnCode
from iproto.address import address_of, parse_address
from iproto.server.rights import ALL, CLASSES, FREE, common, parse_rights
from tests.helpers.harness import Peer, frame, serve_process, serving
from tests.helpers.metrics import get, parse, value

if TYPE_CHECKING:
    from pathlib import Path

PLAIN, WAITING, UNKNOWN = 0x00030001, 0x00040001, 0x00050001

BODIES: dict[int, bytes] = {
    FuncID.STORAGE_READ: msgpack.packb(1),
    FuncID.STORAGE_REPLACE: msgpack.packb(1) + msgpack.packb("x"),
    **dict.fromkeys(CLASSES["admin"], b"\xc0"),
    FuncID.PING: b"",
    FuncID.SHUTDOWN: b"",
    PLAIN: b"",
    WAITING: b"",
    UNKNOWN: b"",
}
"""Every built-in function, user functions of both kinds, and a number without one."""

RIGHTS = (
    *("read", "write", "admin", "call", "all", "none", "read+write", "read+admin", "write+call"),
    *("0x00030001", "0x00040000-0x0004ffff", "0x00010001", "0x00020000-0x0002ffff"),
)


def app() -> iproto.App:
    functions = iproto.App()

    @functions.function(PLAIN)
    def plain() -> str:
        return str(iproto.current_peer())

    @functions.function(WAITING)
    async def waiting() -> str:
        before = iproto.current_peer()
        await asyncio.sleep(0)
        assert iproto.current_peer() is before
        return await asyncio.to_thread(lambda: str(iproto.current_peer()))

    return functions


def expected(rights: str, func_id: int) -> ReturnCode | None:
    """By what the documentation says, in words of its own."""
    if func_id in FREE:
        return None
    parts = rights.split("+")
    names = {
        "read": {0x00020002},
        "write": {0x00020001},
        "admin": {0x00010001, 0x00010002, 0x00010003},
        "call": {PLAIN, WAITING, UNKNOWN},
        "all": {*BODIES},
        "none": set[int](),
        "0x00030001": {PLAIN},
        "0x00040000-0x0004ffff": {WAITING},
        "0x00010001": {0x00010001},
        "0x00020000-0x0002ffff": {0x00020001, 0x00020002},
    }
    if not any(func_id in names[part] for part in parts):
        return ReturnCode.NOT_PERMITTED
    return ReturnCode.UNSUPPORTED_COMMAND if func_id == UNKNOWN else ReturnCode.OK


def test_each_right_permits_its_functions_at_each_kind_of_listener(
    loop_name: str, tmp_path: Path
) -> None:
    kinds = [*itertools.product(RIGHTS, ("tcp", "unix"), ("vk", "mailru"))]
    listeners = [
        ListenerConfig(
            address="127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/{number}",
            rights=rights,
            dialect=dialect,
        )
        for number, (rights, kind, dialect) in enumerate(kinds)
    ]
    with serving(app(), loop=loop_name, bind=(), listener=listeners) as served:
        storage = served.server.storage
        for (rights, kind, dialect), address in zip(kinds, served.server.addresses, strict=True):
            with Peer(address, dialect=dialect) as peer:
                # All at once: neighbours in one chunk must not borrow each other's rights.
                order = [f for f in BODIES if f != FuncID.SHUTDOWN]
                order = [*order, *reversed(order), *order[::2], FuncID.SHUTDOWN]
                peer.send(b"".join(frame(f, BODIES[f], n) for n, f in enumerate(order)))
                replies = {reply.request_id: reply for reply in peer.replies(len(order))}
                for number, func_id in enumerate(order):
                    where = (rights, kind, dialect, hex(func_id))
                    code = replies[number].code
                    wanted = expected(rights, func_id)
                    # Another client's switch decides what a permitted read or write meets.
                    if wanted is ReturnCode.OK and func_id in (
                        FuncID.STORAGE_READ,
                        FuncID.STORAGE_REPLACE,
                    ):
                        assert code in (0, ReturnCode.READ_ONLY, ReturnCode.LOCKED), where
                    else:
                        assert code == wanted, where
            storage.switch(iproto.State.READ_WRITE)


def test_a_call_that_is_not_permitted_changes_nothing(loop_name: str) -> None:
    with serving(loop=loop_name, bind="127.0.0.1:0?rights=read") as served:
        storage = served.server.storage
        storage.replace(1, b"before")
        with served.peer() as peer:
            for func_id in (FuncID.STORAGE_REPLACE, *CLASSES["admin"]):
                reply = peer.ask(func_id, BODIES[func_id])
                assert reply.code == ReturnCode.NOT_PERMITTED
                assert reply.value == (
                    "this client may not call this function, or not at this address"
                )
            assert peer.read(1) == "before"
        assert storage.state is iproto.State.READ_WRITE


def test_the_switches_have_an_address_of_their_own(loop_name: str) -> None:
    with serving(loop=loop_name, admin_bind="127.0.0.1:0") as served:
        ordinary, admin = served.server.addresses
        switch = FuncID.ADM_STORAGE_SWITCH_MAINTENANCE
        with Peer(ordinary) as peer:
            assert peer.ask(switch).code == ReturnCode.NOT_PERMITTED
            assert peer.read(1) == ""
        with Peer(admin) as peer:
            assert peer.ask(switch).code == 0
        assert served.server.storage.state is iproto.State.MAINTENANCE


def test_an_acl_narrows_the_rights_of_a_listener_by_the_narrowest_entry(
    loop_name: str, tmp_path: Path
) -> None:
    uid = os.getuid()
    acl = ["127.0.0.0/8=read", "127.0.0.1/32=read+write+admin", f"uid:{uid}=admin", "::/0=all"]
    with serving(
        loop=loop_name,
        bind=("127.0.0.1:0?rights=read+write", f"unix:{tmp_path}/x"),
        acl=acl,
    ) as served:
        tcp, unix = served.server.addresses

        def codes(address: Any) -> list[int | None]:
            with Peer(address) as peer:
                return [
                    peer.ask(func_id, BODIES[func_id]).code
                    for func_id in (
                        FuncID.STORAGE_READ,
                        FuncID.STORAGE_REPLACE,
                        FuncID.ADM_STORAGE_SWITCH_READWRITE,
                    )
                ]

        assert codes(tcp) == [0, 0, ReturnCode.NOT_PERMITTED]
        assert codes(unix) == [ReturnCode.NOT_PERMITTED, ReturnCode.NOT_PERMITTED, 0]


def test_who_is_in_no_entry_of_an_acl_has_no_right_but_may_ping() -> None:
    with serving(acl=("10.0.0.0/8=all",)) as served, served.peer() as peer:
        assert peer.ask(FuncID.STORAGE_READ, b"\x01").code == ReturnCode.NOT_PERMITTED
        assert peer.ask(FuncID.PING).code is None


@pytest.mark.parametrize(
    "settings", [{"deny": ("127.0.0.0/8",)}, {"allow": ("10.0.0.0/8", "::1")}], ids=str
)
def test_who_may_not_connect_is_closed_at_accept(settings: dict[str, Any]) -> None:
    with serving(**settings) as served:
        with served.peer() as peer:
            assert peer.rest() == b""
        assert served.wait_closed() == {"DENIED": 1}


def test_allow_says_who_may_connect_and_deny_wins(tmp_path: Path) -> None:
    both = ("127.0.0.1:0", f"unix:{tmp_path}/x")
    with serving(bind=both, allow=("127.0.0.0/8",), deny=("127.0.0.2",)) as served:
        for address in served.server.addresses:
            with Peer(address) as peer:
                assert peer.ask(FuncID.PING).code is None


def test_refusals_are_in_the_log_with_the_peer_and_in_the_metrics() -> None:
    with serve_process("--bind", "127.0.0.1:0?rights=read") as run:
        with run.peer() as peer:
            for _ in range(50):
                assert peer.ask(FuncID.STORAGE_REPLACE, BODIES[FuncID.STORAGE_REPLACE]).code
            where = address_of(peer.sock)
        line = run.wait_for("WARNING.* refused a call by")[0]
        assert f"{where} at 127.0.0.1:0" in "".join(run.log), line
        metrics = parse(get(parse_address(run.metrics.removeprefix("http://")), "/metrics")[1])
        assert (
            value(
                metrics,
                "iproto_requests_total",
                function="STORAGE_REPLACE",
                code="NOT_PERMITTED",
            )
            == 50
        )
    assert "".join(run.log).count("refused a call by") == 1  # of a kind, within ten seconds


def test_a_public_address_where_everybody_may_switch_is_warned_of() -> None:
    with serve_process("--bind", "0.0.0.0:0", "--bind", "127.0.0.1:0") as run:
        pass
    warnings = [line for line in run.log if "whoever reaches" in line]
    assert len(warnings) == 1
    assert "0.0.0.0:" in warnings[0]


@pytest.mark.parametrize(
    "more",
    [("--admin-bind", "127.0.0.1:0"), ("--allow", "127.0.0.0/8"), ("--acl", "127.0.0.0/8=all")],
    ids=lambda more: str(more[0]),
)
def test_there_is_no_warning_where_the_switches_are_kept_from_strangers(
    more: tuple[str, str],
) -> None:
    with serve_process("--bind", "0.0.0.0:0", *more) as run:
        pass
    assert not [line for line in run.log if "whoever reaches" in line]


def test_a_user_function_can_ask_who_calls(loop_name: str, tmp_path: Path) -> None:
    both = ("127.0.0.1:0", f"unix:{tmp_path}/x")
    with serving(app(), loop=loop_name, bind=both) as served:
        for address in served.server.addresses:
            with Peer(address) as peer:
                if address.path:
                    who = f"uid {os.getuid()} at unix:{address.path}"
                else:
                    who = f"{address_of(peer.sock)} at 127.0.0.1:0"
                assert peer.ask(PLAIN).value == peer.ask(WAITING).value == who
    assert iproto.current_peer() is None


def test_a_unix_socket_gets_its_mode_and_group(tmp_path: Path) -> None:
    one = ListenerConfig(address=f"unix:{tmp_path}/x", mode="0640", group=str(os.getgid()))
    with serving(bind=(), listener=(one,)):
        found = (tmp_path / "x").stat()
        assert (found.st_mode & 0o777, found.st_gid) == (0o640, os.getgid())


def test_listeners_of_a_settings_file_keep_their_rights_in_workers(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f"""
        workers = 2
        metrics_bind = "off"
        [[listener]]
        address = "127.0.0.1:0"
        rights = ["read", "0x00030000-0x0003ffff"]
        dialect = "mailru"
        [[listener]]
        address = "unix:{tmp_path}/admin"
        rights = ["admin"]
        mode = "0600"
        """
    )
    with serve_process("--config", str(settings), bare=True) as run:
        with run.peer(0) as peer:
            peer.mailru = True
            for _ in range(2):
                assert peer.ask(FuncID.STORAGE_READ, b"\x01").code == 0
                assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == (
                    ReturnCode.NOT_PERMITTED
                )
                assert peer.ask(PLAIN).code == ReturnCode.UNSUPPORTED_COMMAND
        with run.peer(1) as peer:
            assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == 0
            assert peer.ask(FuncID.STORAGE_READ, b"\x01").code == ReturnCode.NOT_PERMITTED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bind": "127.0.0.1:0?right=read"}, "has the key 'right'; it must be one of address, ri"),
        ({"bind": "127.0.0.1:0?rights=rw"}, "rights of 127.0.0.1:0 has 'rw'; a right is read, wr"),
        ({"bind": "127.0.0.1:0?dialect=x"}, "dialect of 127.0.0.1:0 is 'x'; it must be one of"),
        ({"bind": "127.0.0.1:0?mode=0600"}, "mode of 127.0.0.1:0: only a unix socket has one"),
        ({"bind": "unix:/x?mode=0999"}, "mode of unix:/x is '0999'; it must be permissions in oct"),
        ({"bind": "127.0.0.1:0?"}, "write it like 0.0.0.0:8080[?]rights=read"),
        ({"listener": [{"rights": "read"}]}, "listener has no address; give it one"),
        ({"listener": {"address": ":1"}}, "it must be a list of tables"),
        ({"listener": ["x"]}, "listener is 'x'; it must be a table"),
        ({"bind": "127.0.0.1:0?rights=5-3"}, "has '5-3'; a right is"),
        ({"bind": "127.0.0.1:0?rights=0x1ffffffff"}, "has '0x1ffffffff'; a right is"),
        ({"allow": ("10.0.0.1/8",)}, "allow has '10.0.0.1/8'; it must be a network"),
        ({"deny": 5}, "deny is 5; it must be a list of networks"),
        ({"acl": ("10.0.0.0/8",)}, "acl has '10.0.0.0/8'; write it like"),
        ({"acl": ("uid:x=all",)}, "acl has 'uid:x'; a user is uid: and a number"),
        ({"acl": ("10.0.0.0/8=rw",)}, "acl of 10.0.0.0/8 has 'rw'; a right is"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(iproto.ConfigError, match=message):
        Config(**settings)


def test_an_acl_may_be_a_table() -> None:
    table: Any = {"10.0.0.0/8": ["read", "call"], "uid:0": "all"}
    assert Config(acl=table).acl == ("10.0.0.0/8=read+call", "uid:0=all")


@pytest.mark.parametrize("one", ["all", "read+0x00030001", "call", "none"])
@pytest.mark.parametrize("other", ["all", "read+write", "0x00000000-0xffffffff"])
def test_common_rights_permit_what_both_permit(one: str, other: str) -> None:
    first, second = parse_rights("x", one), parse_rights("x", other)
    for func_id in BODIES:
        both = first.permits(func_id) and second.permits(func_id)
        assert common(first, second).permits(func_id) == both
    assert common(first, ALL) == first
