"""Certificates made for a test, and a peer that speaks TLS by Python's own ssl module."""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

from tests.helpers.harness import Peer

if TYPE_CHECKING:
    from pathlib import Path

    from iproto.address import Address


class Pair(NamedTuple):
    """Files of a certificate with its chain, and of its key."""

    cert: str
    key: str


class Authority:
    """Signs certificates.

    Args:
        folder: where the files are made.
        name: of the authority, in its files' names.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA(organization_name=name)
        self.path = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.path)

    def issue(
        self,
        *names: str,
        file: str = "server",
        expired: bool = False,
        early: bool = False,
        common_name: str | None = None,
        rsa: bool = False,
    ) -> Pair:
        """Makes a certificate for names: by default those of this machine."""
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        issued = self._ca.issue_cert(
            *(names or ("localhost", "127.0.0.1", "::1")),
            common_name=common_name,
            not_before=now + day if early else now - 9 * day,
            not_after=now - day if expired else now + 9 * day,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
        )
        pair = Pair(str(self._folder / f"{file}.crt"), str(self._folder / f"{file}.key"))
        issued.private_key_pem.write_to_path(pair.key)
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(pair.cert, append=number > 0)
        return pair

    def context(self, client: Pair | None = None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        """For a client that trusts this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.path)
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        for name, version in versions.items():
            setattr(context, name, version)
        return context


class SecurePeer(Peer):
    """One connection with TLS to a server under test.

    Args:
        address: the server's.
        context: of the client.
        server_name: that the server's certificate must have.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext,
        *,
        server_name: str = "localhost",
        **options: Any,
    ) -> None:
        super().__init__(address, **options)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=server_name)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> SecurePeer:
        return self

    @property
    def tls(self) -> ssl.SSLSocket:
        """The socket."""
        assert isinstance(self.sock, ssl.SSLSocket)
        return self.sock
