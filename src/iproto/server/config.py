"""The server's settings: one frozen, validated object.

The options of ``iproto serve`` and the ``IPROTO_*`` variables are derived from
its fields, so that each setting is written once, here.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from iproto.address import (
    DEFAULT_HOST,
    DEFAULT_METRICS_PORT,
    DEFAULT_PORT,
    Address,
    parse_address,
)
from iproto.checks import MAX_SECONDS, checked_range
from iproto.errors import ConfigError
from iproto.server import networks
from iproto.server.listener_config import (
    DIALECTS,
    NET_RPC,
    ListenerConfig,
    fixed_parts,
    listener_from,
    parse_listener,
)
from iproto.server.rates import parse_rate
from iproto.wire import Dialect

MAX_BODY_CEILING = 1 << 30
MAX_DEPTH_CEILING = 512  # as of _fastframe; not imported, for the command line is quick to start
PANIC = 60
"""Level above CRITICAL: with it nothing is logged at all."""

LOG_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
    "PANIC": PANIC,
}


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of Config.

    Args:
        default: of the field.
        help: of its option.
        metadata: ``metavar`` or ``choices``, for its option too; ``many``, it may be
            given several times; ``fixed``, it cannot change while the server runs, or a
            function that takes a value and returns the part that cannot; ``env``, its
            variables; ``command_line_default``, if it is another there; ``shown``, what
            the default is called; ``file_only``, there is no option for it.
    """
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a server.

    Args:
        bind: one listener or several, each ``HOST:PORT`` or ``unix:PATH``, or the short
            form of a ListenerConfig, ``HOST:PORT?rights=read+call``. None for
            127.0.0.1:8080, or for none where there are others.
        listener: further listeners, each a :class:`ListenerConfig` or a dict of its fields.
        admin_bind: listeners, as in ``bind``, at which the storage may be switched; where
            there are any, the others have not the right ``admin`` unless their rights say so.
        net_rpc_bind: listeners, as in ``bind``, for clients of Go's net/rpc. Where there
            are any, and neither ``bind`` nor ``listener``, there are no others.
        allow: networks like ``10.0.0.0/8`` or addresses; a TCP connection from elsewhere
            is closed at accept. Empty for no such bound.
        deny: networks or addresses; a TCP connection from there is closed at accept.
        acl: who has which rights, ``10.0.0.0/8=read+call`` or ``uid:1000=all``, or a dict;
            the narrowest network that fits counts, and together with the listener's rights.
            Who is in none has no right. Empty for the listeners' rights alone.
        metrics_bind: ``HOST:PORT`` for /metrics, /healthz and /readyz; None or
            ``"off"`` for none. (``iproto serve`` has 127.0.0.1:8088 as default.)
        dialect: ``"vk"`` or ``"mailru"``; see :class:`iproto.wire.Dialect`.
        idle_timeout: seconds, over 0 and at most 86400.
        max_connection_age: seconds, 0..86400, and up to a tenth more; 0 for no limit.
        max_connections: 1..1000000 over all workers, or ``"auto"`` for as many as each
            process has descriptors for.
        max_connections_per_client: 0..65000; 0 for no limit. A client is an address, a
            /64 of IPv6, a user of a unix socket, or a name in a certificate.
        connect_rate: ``"RATE:BURST"``, as for :func:`iproto.server.rates.parse_rate`.
        rate_limit: the same, of requests.
        max_calls_per_client: 0..65000; 0 for no limit.
        max_body: bytes, 1024..2**30.
        max_objects: MsgPack objects in a body of a user function, 1..2**30; a body
            over it is refused before anything is built of it.
        max_depth: arrays and maps within one another in such a body, 1..512.
        describe_functions: ``"on"`` or ``"off"``: whether clients may ask for the
            names, signatures, docs and schemas of user functions.
        max_calls_per_connection: 1..65536; at the limit further calls wait.
        max_queue: bytes, 1024..2**30; at the limit the connection is not read.
        queue_timeout: seconds, 0.001..86400; a call that waited longer is answered
            OVERLOADED and not executed.
        max_unsent: bytes, 1024..2**32; a connection with more of them is closed as
            SLOW_READER. One reply alone may be longer.
        max_calls: 1..1000000; over it calls are answered OVERLOADED.
        call_timeout: seconds that a call of a user function may take that has no
            time-out of its own, 0..86400; 0 for no limit.
        drain_timeout: seconds, 0..86400.
        workers: 1..256, or ``"auto"``; None for no worker processes. Only
            ``iproto serve`` starts any.
        worker_timeout: seconds, 1..86400.
        storage_file: path of a file to keep the storage in; None for memory
            alone. Only ``iproto serve`` and :func:`iproto.run` open it; see
            :func:`iproto.open_storage` for a server of your own.
        storage_sync: seconds, 0..86400; 0 for never. Without effect without a
            ``storage_file``.
        tls_cert: path of a certificate in PEM, with its chain; then the TCP addresses
            speak TLS, and only that. None for no TLS.
        tls_key: path of its private key; None if it is in the same file.
        tls_client_ca: path of the authorities that sign clients' certificates; None for
            no certificate asked of clients.
        tls_handshake_timeout: seconds, 0.001..86400.
        max_tls_handshakes: 1..1000000.
        backlog: 1..65535.
        loop: ``"auto"``, ``"uvloop"`` or ``"asyncio"``; only ``iproto serve`` and
            :func:`iproto.run` start a loop.
        log_level: a key of ``LOG_LEVELS``; only ``iproto serve`` sets logging up.

    Raises:
        ConfigError: a value is outside its range.
    """

    bind: tuple[str, ...] | str = _setting(
        None,
        "address to listen on: HOST:PORT, or unix:PATH, with settings of this listener behind it "
        "as in :8080?rights=read; may be given several times",
        metavar="ADDRESS",
        many=True,
        fixed=fixed_parts,
        shown=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
    )
    listener: tuple[ListenerConfig, ...] = _setting(
        (),
        "further listeners, each a table",
        many=True,
        fixed=fixed_parts,
        file_only=True,
    )
    admin_bind: tuple[str, ...] | str = _setting(
        (),
        "address to listen on for those who may switch the storage; they may not at others then; "
        "as --bind, may be given several times",
        metavar="ADDRESS",
        many=True,
        fixed=fixed_parts,
        shown="none",
    )
    net_rpc_bind: tuple[str, ...] | str = _setting(
        (),
        "address to listen on for clients of Go's net/rpc; as --bind, may be given several times",
        metavar="ADDRESS",
        many=True,
        fixed=fixed_parts,
        shown="none",
    )
    allow: tuple[str, ...] | str = _setting(
        (),
        "network that may connect, like 10.0.0.0/8; others are closed at accept; may be given "
        "several times",
        metavar="CIDR",
        many=True,
        shown="all",
    )
    deny: tuple[str, ...] | str = _setting(
        (),
        "network that may not connect; may be given several times",
        metavar="CIDR",
        many=True,
        shown="none",
    )
    acl: tuple[str, ...] | str = _setting(
        (),
        "network or user and its rights, like 10.0.0.0/8=read+call or uid:1000=all; who is in "
        "none has no right; may be given several times",
        metavar="WHO=RIGHTS",
        many=True,
        shown="none",
    )
    metrics_bind: str | None = _setting(
        None,
        "address of /metrics, /healthz and /readyz, or 'off'",
        metavar="HOST:PORT",
        command_line_default=f"{DEFAULT_HOST}:{DEFAULT_METRICS_PORT}",
        fixed=True,
    )
    dialect: Dialect | str = _setting(
        "vk",
        "what body_length of a response counts: the body (vk), or return_code and body (mailru)",
        choices=DIALECTS,
    )
    idle_timeout: float = _setting(
        30.0,
        "close a connection after this long without traffic, or with a frame begun and not ended",
        metavar="SECONDS",
    )
    max_connection_age: float = _setting(
        0.0,
        "close a connection that has been open for so long, and up to a tenth longer, once what it "
        "has sent is answered; 0 never does",
        metavar="SECONDS",
    )
    max_connections: int | str = _setting(
        "auto",
        "connections at once, over all workers; auto for as many as there are file descriptors for",
        metavar="N|auto",
    )
    max_connections_per_client: int = _setting(
        0, "connections at once of one client, over all workers; 0 for no limit", metavar="N"
    )
    connect_rate: str | None = _setting(
        "off",
        "connections of one client that are taken in a second, and behind a colon at once, like "
        "10:50",
        metavar="RATE[:BURST]",
    )
    rate_limit: str | None = _setting(
        "off",
        "requests of one client that are executed in a second, over all workers, and behind a "
        "colon at once, like 100:20",
        metavar="RATE[:BURST]",
    )
    max_calls_per_client: int = _setting(
        0,
        "calls of your own functions that run at once for one client, over all workers; 0 for no "
        "limit",
        metavar="N",
    )
    max_body: int = _setting(1 << 20, "longest request body taken", metavar="BYTES")
    max_objects: int = _setting(
        100_000,
        "MsgPack objects in one body for a user function, nested ones and keys included",
        metavar="N",
    )
    max_depth: int = _setting(
        64,
        "arrays and maps within one another in one body for a user function",
        metavar="N",
    )
    describe_functions: str = _setting(
        "on",
        "whether clients may ask for the names, signatures and docs of user functions",
        choices=("on", "off"),
    )
    max_calls_per_connection: int = _setting(
        64,
        "calls of user functions that run at once for one connection; further ones wait",
        metavar="N",
    )
    max_queue: int = _setting(
        1 << 18,
        "calls of user functions that wait on one connection, each with its body and 256 "
        "bytes more; at the limit it is not read",
        metavar="BYTES",
    )
    queue_timeout: float = _setting(
        10.0,
        "answer OVERLOADED to a call that has waited this long on its connection",
        metavar="SECONDS",
    )
    max_unsent: int = _setting(
        64 << 20,
        "replies of user functions that wait to be sent on one connection; it is closed "
        "when there are more",
        metavar="BYTES",
    )
    max_calls: int = _setting(
        10_000,
        "calls of user functions that run at once in all; more are answered OVERLOADED",
        metavar="N",
    )
    call_timeout: float = _setting(
        0.0,
        "answer TIMEOUT to a call of your own function after so long, if it has no time-out of "
        "its own; 0 for never",
        metavar="SECONDS",
    )
    drain_timeout: float = _setting(
        10.0,
        "on SIGTERM or SIGINT, wait at most this long for what is being answered",
        metavar="SECONDS",
    )
    workers: int | str | None = _setting(
        None,
        "worker processes over one shared storage, kept running by a supervisor: a number, or auto "
        "for the usable CPUs; without, this one process serves",
        metavar="N|auto",
        fixed=True,
    )
    worker_timeout: float = _setting(
        10.0,
        "replace a worker whose event loop has not run for this long",
        metavar="SECONDS",
    )
    storage_file: str | None = _setting(
        None,
        "file that keeps slots and state across restarts and crashes; made if it is not there; "
        "without, they are in memory and begin empty",
        metavar="PATH",
        fixed=True,
    )
    storage_sync: float = _setting(
        0.0,
        "flush the storage file to the disk at this interval, and at the end; 0 leaves the moment "
        "to the system, which matters only when that crashes or the power fails",
        metavar="SECONDS",
    )
    tls_cert: str | None = _setting(
        None,
        "serve TLS at TCP addresses, with the certificate in this file (PEM, the chain behind it); "
        "it is loaded anew when it changes",
        metavar="PATH",
    )
    tls_key: str | None = _setting(
        None,
        "private key of the certificate (PEM, not encrypted); without, it is in the same file",
        metavar="PATH",
    )
    tls_client_ca: str | None = _setting(
        None,
        "certificates of the authorities that sign those of clients (PEM); then every client needs "
        "one",
        metavar="PATH",
    )
    tls_handshake_timeout: float = _setting(
        10.0, "close a connection whose TLS handshake takes longer", metavar="SECONDS"
    )
    max_tls_handshakes: int = _setting(
        1000, "TLS handshakes under way at once; more connections are closed", metavar="N"
    )
    backlog: int = _setting(
        4096,
        "connections that may wait to be accepted (the system may allow fewer)",
        metavar="N",
        fixed=True,
    )
    loop: str = _setting(
        "auto",
        "event loop; auto takes uvloop where it is installed",
        choices=("auto", "uvloop", "asyncio"),
    )
    log_level: str = _setting(
        "INFO",
        "least severe log lines to write; LOG_LEVEL in the environment works too",
        choices=tuple(LOG_LEVELS),
        env=("IPROTO_LOG_LEVEL", "LOG_LEVEL"),
    )

    def __post_init__(self) -> None:
        self._check_listeners()
        self._put("allow", networks.checked("allow", self.allow))
        self._put("deny", networks.checked("deny", self.deny))
        self._put("acl", networks.checked_acl(self.acl))
        if self.metrics_bind in ("", "off"):
            self._put("metrics_bind", None)
        if self.metrics_bind is not None:
            if not isinstance(self.metrics_bind, str):
                raise ConfigError(
                    f"metrics_bind is {self.metrics_bind!r}; it must be HOST:PORT, or 'off'"
                )
            parse_address(self.metrics_bind, unix=False)
        if isinstance(self.dialect, Dialect):
            self._put("dialect", self.dialect.value)
        self._put("log_level", str(self.log_level).upper())
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise ConfigError(
                    f"{field.name} is {value!r}; it must be one of {', '.join(choices)}"
                )
        self._check_range("idle_timeout", 0.001, MAX_SECONDS, "seconds")
        self._check_range("max_connection_age", 0, MAX_SECONDS, "seconds")
        self._check_range("call_timeout", 0, MAX_SECONDS, "seconds")
        if self.max_connections != "auto":
            if isinstance(self.max_connections, str) and self.max_connections.isdecimal():
                self._put("max_connections", int(self.max_connections))
            self._check_range("max_connections", 1, 1_000_000, "connections, or 'auto'", whole=True)
        self._check_range("max_connections_per_client", 0, 65_000, "connections")
        self._check_range("max_calls_per_client", 0, 65_000, "calls")
        for name in ("rate_limit", "connect_rate"):
            parse_rate(name, getattr(self, name))
            self._put(name, str(getattr(self, name) or "off"))
        self._check_range("drain_timeout", 0, MAX_SECONDS, "seconds")
        self._check_range("max_body", 1024, MAX_BODY_CEILING, "bytes")
        self._check_range("max_objects", 1, MAX_BODY_CEILING, "objects")
        self._check_range("max_depth", 1, MAX_DEPTH_CEILING, "levels")
        self._check_range("max_calls_per_connection", 1, 65_536, "calls")
        self._check_range("max_queue", 1024, MAX_BODY_CEILING, "bytes")
        self._check_range("queue_timeout", 0.001, MAX_SECONDS, "seconds")
        self._check_range("max_unsent", 1024, 1 << 32, "bytes")
        self._check_range("max_calls", 1, 1_000_000, "calls")
        self._check_range("worker_timeout", 1, MAX_SECONDS, "seconds")
        if self.workers not in (None, "auto"):
            if isinstance(self.workers, str) and self.workers.isdecimal():
                self._put("workers", int(self.workers))
            self._check_range("workers", 1, 256, "processes, or 'auto'", whole=True)
        file = self.storage_file
        if file is not None and (not isinstance(file, str) or not file or "\0" in file):
            raise ConfigError(f"storage_file is {self.storage_file!r}; it must be a path")
        self._check_range("storage_sync", 0, MAX_SECONDS, "seconds")
        self._check_tls()
        self._check_range("backlog", 1, 65_535, "connections")

    def _check_listeners(self) -> None:
        if isinstance(self.listener, (str, dict)) or not isinstance(self.listener, (tuple, list)):
            raise ConfigError(f"listener is {self.listener!r}; it must be a list of tables")
        self._put("listener", tuple(map(listener_from, self.listener)))
        self._put("admin_bind", self._checked_binds("admin_bind"))
        self._put("net_rpc_bind", self._checked_binds("net_rpc_bind"))
        others = self.listener or self.net_rpc_bind
        if getattr(self, "bind", None) is None:  # its default
            self._put("bind", () if others else (f"{DEFAULT_HOST}:{DEFAULT_PORT}",))
        self._put("bind", self._checked_binds("bind"))
        if not (self.bind or others):
            raise ConfigError("bind is empty; give at least one address, like 127.0.0.1:8080")

    def _checked_binds(self, name: str) -> tuple[str, ...]:
        value = getattr(self, name)
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{name} is {texts!r}; it must be an address, or a list of addresses")
        for text in texts:
            parse_listener(text, dialect=NET_RPC if name == "net_rpc_bind" else None)
        return tuple(texts)

    @property
    def listeners(self) -> tuple[ListenerConfig, ...]:
        """All of them, with the rights and the dialect that each has in the end."""
        binds = [
            *map(parse_listener, self.bind),
            *self.listener,
            *(parse_listener(text, dialect=NET_RPC) for text in self.net_rpc_bind),
        ]
        return tuple(
            dataclasses.replace(
                one,
                rights=one.rights or (self.standard_rights,),
                dialect=one.dialect or str(self.dialect),
            )
            for one in binds
        ) + tuple(
            dataclasses.replace(
                one, rights=one.rights or ("all",), dialect=one.dialect or str(self.dialect)
            )
            for one in map(parse_listener, self.admin_bind)
        )

    @property
    def standard_rights(self) -> str:
        """The rights at a listener that says nothing of them."""
        return "read+write+call" if self.admin_bind else "all"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those of all listeners."""
        return tuple(one.place for one in self.listeners)

    @property
    def metrics_address(self) -> Address | None:
        """``metrics_bind``, parsed."""
        return None if self.metrics_bind is None else parse_address(self.metrics_bind, unix=False)

    def _check_tls(self) -> None:
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, str) or not path or "\0" in path):
                raise ConfigError(f"{name} is {path!r}; it must be a path")
        self._check_range("tls_handshake_timeout", 0.001, MAX_SECONDS, "seconds")
        self._check_range("max_tls_handshakes", 1, 1_000_000, "handshakes")

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_range(
        self, name: str, low: float, high: float, unit: str, *, whole: bool = False
    ) -> None:
        whole = whole or self.__dataclass_fields__[name].type == "int"
        checked_range(name, getattr(self, name), low, high, unit, whole=whole)
