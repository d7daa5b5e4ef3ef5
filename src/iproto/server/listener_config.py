"""What one listener is set to: ``[[listener]]`` of the settings file, and its short form."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from iproto.address import Address, parse_address
from iproto.errors import ConfigError
from iproto.server.rights import ALL, Rights, parse_rights
from iproto.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Iterable

DIALECTS = ("vk", "mailru")
"""Of iproto."""

NET_RPC = "net-rpc"
"""In place of iproto: Go's net/rpc."""

DIALECTS_OF_LISTENERS = (*DIALECTS, NET_RPC)

HIGHEST_MODE = 0o777


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenerConfig:
    """Settings of one listener.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``.
        rights: what may be called here, as for :func:`iproto.server.rights.parse_rights`;
            None for all, without ``admin`` where there is an ``admin_bind``.
        dialect: ``"vk"`` or ``"mailru"``; None for that of the server. ``"net-rpc"`` for
            clients of Go's net/rpc.
        mode: permissions of a unix socket, 0..0o777, also as octal text like ``"0660"``;
            None for what the umask leaves.
        group: name or number of the group that a unix socket belongs to; None for the
            process's own.
        tls: whether it speaks TLS, also as text, ``"on"`` or ``"off"``; None for TLS at a TCP
            address of a server that has a certificate.

    Raises:
        ConfigError: a value is outside what is said here.
    """

    address: str
    rights: tuple[str, ...] | str | None = None
    dialect: str | None = None
    mode: int | str | None = None
    group: str | int | None = None
    tls: bool | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str):
            raise ConfigError(f"address is {self.address!r}; it must be HOST:PORT or unix:PATH")
        place = parse_address(self.address)
        if self.rights is not None:
            parse_rights(f"rights of {self.address}", self.rights)
            texts = (self.rights,) if isinstance(self.rights, str) else tuple(self.rights)
            self._put("rights", texts)
        if isinstance(self.dialect, Dialect):
            self._put("dialect", self.dialect.value)
        if self.dialect is not None and self.dialect not in DIALECTS_OF_LISTENERS:
            raise ConfigError(
                f"dialect of {self.address} is {self.dialect!r}; "
                f"it must be one of {', '.join(DIALECTS_OF_LISTENERS)}"
            )
        self._check_mode()
        self._check_group()
        if self.tls in ("on", "off"):
            self._put("tls", self.tls == "on")
        if not (self.tls is None or isinstance(self.tls, bool)):
            raise ConfigError(
                f"tls of {self.address} is {self.tls!r}; it must be true or false, on or off"
            )
        if self.tls and place.path:
            raise ConfigError(f"tls of {self.address}: only a TCP address can have it")
        for name in ("mode", "group"):
            if getattr(self, name) is not None and not place.path:
                raise ConfigError(f"{name} of {self.address}: only a unix socket has one")

    def _check_mode(self) -> None:
        mode = self.mode
        if isinstance(mode, str) and mode and set(mode) <= set("01234567"):
            mode = int(mode, 8)
        if mode is not None and not (type(mode) is int and 0 <= mode <= HIGHEST_MODE):
            raise ConfigError(
                f"mode of {self.address} is {self.mode!r}; it must be permissions in octal digits, "
                'at most 777, like "0660"'
            )
        self._put("mode", mode)

    def _check_group(self) -> None:
        group = self.group
        if isinstance(group, int) and not isinstance(group, bool) and group >= 0:
            self._put("group", str(group))
        elif group is not None and not (isinstance(group, str) and group):
            raise ConfigError(f"group of {self.address} is {group!r}; it must be a name or number")

    @property
    def place(self) -> Address:
        """``address``, parsed."""
        return parse_address(self.address)

    @property
    def granted(self) -> Rights:
        """``rights``, parsed."""
        return ALL if self.rights is None else parse_rights("rights", self.rights)

    def speaks_tls(self, *, by_default: bool) -> bool:
        """Whether connections begin with a handshake.

        Args:
            by_default: whether a TCP address that says nothing of it does.
        """
        return by_default and not self.place.path if self.tls is None else bool(self.tls)

    @property
    def fixed_part(self) -> tuple[object, ...]:
        """What cannot change while the server listens."""
        return (self.address, self.mode, self.group)

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


_KEYS = [field.name for field in dataclasses.fields(ListenerConfig)]


def parse_listener(text: str, *, dialect: str | None = None) -> ListenerConfig:
    """Reads the short form: ``0.0.0.0:8080?rights=read+call&dialect=mailru``.

    Args:
        text: an address, and behind a question mark what differs from the defaults.
        dialect: what the listener speaks, where the text may not say it.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    address, question, query = text.partition("?")
    values: dict[str, Any] = {"address": address}
    if dialect is not None:
        values["dialect"] = dialect
    for pair in query.split("&") if question else ():
        key, equals, value = pair.partition("=")
        if key == "dialect" and dialect is not None:
            raise ConfigError(f"listener {text!r} has a dialect; here it is {dialect} always")
        if not equals or key == "address" or key in values:
            raise ConfigError(
                f"listener {text!r} has {pair!r}; write it like "
                "0.0.0.0:8080?rights=read+call&dialect=mailru"
            )
        values[key] = value
    return listener_from(values, text)


def listener_from(values: object, name: str = "listener") -> ListenerConfig:
    """A listener from a table of the settings file.

    Args:
        values: key → value; a ListenerConfig stays as it is.
        name: what the error calls it.

    Raises:
        ConfigError: a key or a value is wrong, or the address is missing.
    """
    if isinstance(values, ListenerConfig):
        return values
    if not isinstance(values, dict):
        raise ConfigError(f'{name} is {values!r}; it must be a table with address = "HOST:PORT"')
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{name} has the key {key!r}; it must be one of {', '.join(_KEYS)}")
    if "address" not in values:
        raise ConfigError(f'{name} has no address; give it one, like address = "127.0.0.1:8080"')
    return ListenerConfig(**values)


def fixed_parts(listeners: Iterable[ListenerConfig | str]) -> list[tuple[object, ...]]:
    """Of each listener what cannot change while the server listens."""
    return [(parse_listener(one) if isinstance(one, str) else one).fixed_part for one in listeners]
