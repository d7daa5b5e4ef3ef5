"""Networks in settings: who may connect, and who has which rights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from iproto.errors import ConfigError
from iproto.server.rights import Rights, parse_rights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    Network = IPv4Network | IPv6Network
    IPAddress = IPv4Address | IPv6Address

HIGHEST_UID = 2**32 - 2

NOTHING = Rights()


def checked(name: str, texts: str | Iterable[str]) -> tuple[str, ...]:
    """A setting that is a list of networks.

    Args:
        name: of the setting, for errors.
        texts: ``10.0.0.0/8``, ``192.0.2.7``, ``2001:db8::/32``; one or several.

    Raises:
        ConfigError: one is none of these.
    """
    listed = _listed(name, texts, "networks")
    for text in listed:
        parse_network(name, text)
    return listed


def checked_acl(entries: str | dict[str, object] | Iterable[str]) -> tuple[str, ...]:
    """The setting ``acl``, as a list of ``WHO=RIGHTS``.

    Raises:
        ConfigError: an entry has no such form.
    """
    if isinstance(entries, dict):
        entries = [f"{who}={_joined(rights)}" for who, rights in entries.items()]
    listed = _listed("acl", entries, "entries like 10.0.0.0/8=read+call")
    Acl(listed)
    return listed


def parse_network(name: str, text: str) -> Network:
    """Reads a network or an address.

    Args:
        name: of the setting, for errors.
        text: as for ``checked``.

    Raises:
        ConfigError: it is none.
    """
    from ipaddress import ip_network  # not at the top: few servers need it

    try:
        return ip_network(text)
    except ValueError:
        raise ConfigError(
            f"{name} has {text!r}; it must be a network like 10.0.0.0/8 or 2001:db8::/32, with no "
            "bits of an address behind its length, or an address like 192.0.2.7"
        ) from None


@functools.lru_cache(maxsize=4096)  # of a client that connects again and again
def parse_ip(host: str) -> IPAddress:
    """An address as the system says it."""
    from ipaddress import ip_address

    return ip_address(host)


class AddressFilter:
    """Who may connect at all.

    Args:
        allow: networks; empty for all.
        deny: networks that ``allow`` does not help.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allow = [parse_network("allow", text) for text in allow]
        self._deny = [parse_network("deny", text) for text in deny]

    def admits(self, host: str) -> bool:
        """Whether an address may connect; a unix socket (empty) always may."""
        if not host or not (self._allow or self._deny):
            return True
        address = parse_ip(host)
        return not _holds(self._deny, address) and (not self._allow or _holds(self._allow, address))


class Acl:
    """Who has which rights.

    Args:
        entries: ``WHO=RIGHTS``; WHO is a network, an address, ``uid:NUMBER``, or
            ``name:TEXT``, the name in a certificate of the client.

    Raises:
        ConfigError: an entry has no such form.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._networks: list[tuple[Network, Rights]] = []
        self._users: dict[int, Rights] = {}
        self._names: dict[str, Rights] = {}
        for entry in entries:
            who, equals, texts = entry.rpartition("=")
            if not equals:
                raise ConfigError(f"acl has {entry!r}; write it like 10.0.0.0/8=read+call")
            rights = parse_rights(f"acl of {who}", texts)
            if who.startswith("uid:"):
                self._users[_uid(who)] = rights
            elif who.startswith("name:"):
                self._names[who.removeprefix("name:")] = rights
            else:
                self._networks.append((parse_network("acl", who), rights))
        # The narrowest that fits counts.
        self._networks.sort(key=lambda item: item[0].prefixlen, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._networks or self._users or self._names)

    def rights_of(self, host: str, uid: int | None, name: str | None) -> Rights:
        """The rights of a peer: by its name, if an entry has that; none if no entry is for it."""
        if name is not None and name in self._names:
            return self._names[name]
        if not host:
            return NOTHING if uid is None else self._users.get(uid, NOTHING)
        address = parse_ip(host)
        for network, rights in self._networks:
            if address.version == network.version and address in network:
                return rights
        return NOTHING


def _holds(networks: list[Network], address: IPAddress) -> bool:
    return any(address.version == one.version and address in one for one in networks)


def _uid(who: str) -> int:
    text = who.removeprefix("uid:")
    if not (text.isascii() and text.isdigit() and int(text) <= HIGHEST_UID):
        raise ConfigError(f"acl has {who!r}; a user is uid: and a number, like uid:1000")
    return int(text)


def _listed(name: str, texts: object, kind: str) -> tuple[str, ...]:
    if isinstance(texts, str):
        return (texts,)
    if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name} is {texts!r}; it must be a list of {kind}")
    return tuple(texts)


def _joined(rights: object) -> str:
    if isinstance(rights, (tuple, list)):
        return "+".join(map(str, rights))
    return str(rights)
