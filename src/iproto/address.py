"""Addresses: the default ones, and how they are read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from iproto.errors import ConfigError

if TYPE_CHECKING:
    import socket

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_METRICS_PORT = 8088
DEFAULT_URL = f"iproto://{DEFAULT_HOST}:{DEFAULT_PORT}"

MAX_PORT = 65_535

# Bytes of a unix socket's path: the systems' limits begin at 104, with the final zero.
_MAX_PATH = 100


class Address(NamedTuple):
    """Host and port, or the path of a unix socket.

    Args:
        host: name or address, IPv6 without brackets; empty for every IPv4 interface.
        port: 0..65535.
        path: of the unix socket; empty for TCP.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, unix: bool = True) -> Address:
    """Reads ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` (every IPv4 interface) or ``unix:PATH``.

    Args:
        text: the address; port 0 lets the system choose one.
        unix: whether the path of a unix socket may be given.

    Raises:
        ConfigError: the text is none of these.
    """
    if text.startswith("unix:"):
        path = text[len("unix:") :]
        if not unix:
            raise ConfigError(f"address {text!r} must be HOST:PORT, not a unix socket")
        if not path or len(path.encode()) > _MAX_PATH:
            raise ConfigError(
                f"address {text!r} needs a path of 1 to {_MAX_PATH} bytes after 'unix:', "
                "for example unix:/run/iproto.sock"
            )
        return Address("", 0, path)
    host, colon, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    port = parse_port(port_text, least=0)
    if not colon or port is None:
        raise ConfigError(
            f"address {text!r} must be HOST:PORT with a port of 0..{MAX_PORT}, "
            "for example 127.0.0.1:8080, [::1]:8080 or :8080 for every IPv4 interface"
            + (", or unix:PATH" if unix else "")
        )
    return Address(host, port)


def parse_port(text: str, *, least: int) -> int | None:
    """Reads a port.

    Args:
        text: the digits.
        least: 0 where the system may choose the port, else 1.

    Returns:
        The port, least..65535; None if the text is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PORT))):
        return None
    port = int(text)
    return port if least <= port <= MAX_PORT else None


def address_of(sock: socket.socket) -> Address:
    """Where a socket is bound."""
    name = sock.getsockname()
    return Address(name[0], name[1]) if isinstance(name, tuple) else Address("", 0, name)
