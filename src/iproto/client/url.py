"""Where a server is: ``iproto://host:port?dialect=vk&timeout=5`` and its parts."""

from __future__ import annotations

from dataclasses import dataclass

from iproto.address import DEFAULT_HOST, DEFAULT_PORT, MAX_PORT, Address, parse_port
from iproto.checks import MAX_SECONDS, checked_dialect, checked_timeout
from iproto.errors import ConfigError
from iproto.wire import Dialect

DEFAULT_TIMEOUT = 5.0
"""Seconds that a call may take, if neither it nor its client says otherwise."""

_FORMS = (
    "iproto://HOST[:PORT][?dialect=vk|mailru|auto][&timeout=SECONDS], iprotos://... for TLS, "
    "or iproto+unix:///PATH[?...], as in iproto://127.0.0.1:8080?timeout=5"
)

_TLS_PARAMETERS = ("ca", "cert", "key", "server_name")


@dataclass(frozen=True, slots=True)
class TLS:
    """Whom a client trusts by TLS, and what it shows of itself.

    Args:
        ca: path of the authorities that may have signed the server's certificate, in PEM;
            None for those of the system.
        cert: path of the client's own certificate; None for none.
        key: path of its private key; None if it is in the same file.
        server_name: name that the server's certificate must have; None for the host's.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, and how to talk to it.

    Args:
        host: name or address, IPv6 without brackets; not used if there is a path.
        port: TCP port, 1..65535.
        path: path of a unix socket, or None for TCP.
        dialect: what body_length of the server's responses counts.
        timeout: seconds that a call may take, over 0, at most 86400.
        tls: what TLS is to make sure of; None for no TLS.

    Raises:
        ConfigError: a value is out of its range.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    path: str | None = None
    dialect: Dialect = Dialect.VK
    timeout: float = DEFAULT_TIMEOUT
    tls: TLS | None = None

    def __post_init__(self) -> None:
        if isinstance(self.port, bool) or not isinstance(self.port, int):
            raise TypeError(f"a port is an int, not {type(self.port).__name__}")
        if not 1 <= self.port <= MAX_PORT:
            raise ConfigError(f"port {self.port} is out of range; use 1..{MAX_PORT}")
        object.__setattr__(self, "dialect", checked_dialect(self.dialect))
        object.__setattr__(self, "timeout", checked_timeout(self.timeout))

    @property
    def address(self) -> str:
        """The address in one word, for messages: ``[::1]:8080``, ``unix:/run/iproto.sock``."""
        return str(Address(self.host, self.port, self.path or ""))

    @property
    def url(self) -> str:
        """A URL of the address, for messages."""
        if self.path is not None:
            return f"iproto+unix://{self.path}"
        return f"{'iproto' if self.tls is None else 'iprotos'}://{self.address}"


def parse_url(url: str) -> Target:
    """Reads the address of a server.

    Args:
        url: ``iproto://host:port?dialect=vk&timeout=5`` (port 8080 if there is
            none, IPv6 in brackets) or ``iproto+unix:///path?...``; ``dialect``
            is vk, mailru or auto, ``timeout`` in seconds, over 0, at most 86400.
            ``iprotos://host:port`` is the same with TLS, and takes ``ca``, ``cert``,
            ``key`` and ``server_name``, as :class:`TLS` does.

    Raises:
        ConfigError: some part is wrong; the text names it and what is allowed.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError(f"{url!r} has no scheme; write {_FORMS}")
    rest, has_fragment, _ = rest.partition("#")
    if has_fragment:
        raise ConfigError(f"{url!r} has a fragment (#...), which means nothing here; drop it")
    place, _, query = rest.partition("?")
    scheme = scheme.lower()
    has_tls = scheme == "iprotos"
    dialect, timeout, tls = _parse_query(url, query, has_tls=has_tls)
    if scheme == "iproto+unix":
        return Target(path=_parse_path(url, place), dialect=dialect, timeout=timeout)
    if scheme not in ("iproto", "iprotos"):
        raise ConfigError(f"scheme {scheme!r} of {url!r} is unknown; write {_FORMS}")
    host, port = _parse_place(url, place)
    return Target(
        host=host, port=port, dialect=dialect, timeout=timeout, tls=tls if has_tls else None
    )


def _parse_path(url: str, place: str) -> str:
    path = _unquoted(place)
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ConfigError(
            f"{url!r} names no socket; write its absolute path after three slashes, "
            "as in iproto+unix:///run/iproto.sock"
        )
    return path


def _parse_place(url: str, place: str) -> tuple[str, int]:
    place, _, path = place.partition("/")
    if path:
        raise ConfigError(
            f"{url!r} has a path, {'/' + path!r}; drop it, or write iproto+unix:///{path} "
            "for a unix socket"
        )
    if "@" in place:
        raise ConfigError(f"{url!r} has a user before the host; the protocol knows none, drop it")
    if place.startswith("["):
        host, closed, rest = place[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ConfigError(
                f"{place!r} is not an IPv6 address in brackets; write it as in iproto://[::1]:8080"
            )
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise ConfigError(
                f"{place!r} has more than one colon; put an IPv6 address in brackets, "
                "as in iproto://[::1]:8080"
            )
    host = _unquoted(host)
    if not host or any(c.isspace() or c == "\0" for c in host):
        raise ConfigError(f"{url!r} names no host; write {_FORMS}")
    if not colon:
        return host, DEFAULT_PORT
    number = parse_port(port, least=1)
    if number is None:
        raise ConfigError(
            f"port {port!r} of {url!r} is not one; use 1..{MAX_PORT}, "
            f"or leave the colon out for {DEFAULT_PORT}"
        )
    return host, number


def _parse_query(url: str, query: str, *, has_tls: bool) -> tuple[Dialect, float, TLS]:
    values: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name in _TLS_PARAMETERS and not has_tls:
            raise ConfigError(f"parameter {name!r} of {url!r} is for TLS; write iprotos://...")
        if name not in ("dialect", "timeout", *_TLS_PARAMETERS):
            raise ConfigError(
                f"parameter {name!r} of {url!r} is unknown; "
                "use dialect=vk|mailru|auto and timeout=SECONDS"
                + (f", and {', '.join(_TLS_PARAMETERS)}" if has_tls else "")
            )
        if not equals or not value:
            raise ConfigError(f"parameter {name!r} of {url!r} has no value; write {name}=...")
        if name in values:
            raise ConfigError(f"parameter {name!r} of {url!r} is there twice; keep one")
        values[name] = _unquoted(value)
    timeout = DEFAULT_TIMEOUT
    if "timeout" in values:
        try:
            if "_" in values["timeout"]:  # float() would take it
                raise ValueError
            timeout = float(values["timeout"])
        except ValueError:
            raise ConfigError(
                f"timeout {values['timeout']!r} of {url!r} is not a number; use seconds, "
                f"over 0, at most {MAX_SECONDS}, as in timeout=2.5"
            ) from None
    tls = TLS(**{name: values[name] for name in _TLS_PARAMETERS if name in values})
    if tls.key is not None and tls.cert is None:
        raise ConfigError(f"{url!r} has a key and no certificate; name it, too, with cert=")
    return checked_dialect(values.get("dialect", Dialect.VK)), checked_timeout(timeout), tls


def _unquoted(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # not at the top: 4 ms of import for a rare sign

    return unquote(text)
