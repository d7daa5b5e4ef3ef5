"""The server's certificate: loading, checking, and loading it anew when the files change.

A handshake with itself, in memory, shows that a certificate and its key work before any
client meets them. What does not work is refused, and the one before goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import threading
from typing import TYPE_CHECKING, Any

from iproto.errors import ConfigError
from iproto.tls import Session, describe_error, set_policy

if TYPE_CHECKING:
    from iproto.server.config import Config

logger = logging.getLogger("iproto.server")

# Seconds between two looks at the files.
PERIOD = 2.0


class Certificates:
    """The files that the settings name, as OpenSSL has them.

    Args:
        config: the settings; they name a certificate.

    Raises:
        ConfigError: a file cannot be used; the text names it and says what to do.

    A thread looks between ``start`` and ``close`` whether the files have changed.
    """

    def __init__(self, config: Config) -> None:
        assert config.tls_cert is not None
        self._cert = config.tls_cert
        self._key = config.tls_key or config.tls_cert
        self._client_ca = config.tls_client_ca
        self._seen = self._look()
        self.context, self.expires = self._load()
        self._is_asked = False  # to load them though they look as they did
        self._ended = False
        self._wake = threading.Event()

    def start(self) -> None:
        """Looks at the files from now on."""
        threading.Thread(target=self._run, name="iproto certificates", daemon=True).start()

    def close(self) -> None:
        """Looks no more."""
        self._ended = True
        self._wake.set()

    def new_session(self) -> Session:
        """For a connection that begins now."""
        return Session(self.context, server_side=True)

    def reload(self) -> None:
        """Loads the files anew, soon; if they cannot be used, the old ones stay in use."""
        self._is_asked = True
        self._wake.set()

    # The thread.

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # for the main thread
        while not self._ended:
            self._wake.wait(PERIOD)
            self._wake.clear()
            is_asked, self._is_asked = self._is_asked, False
            seen = self._look()
            if is_asked or seen != self._seen:
                self._seen = seen
                self._load_anew()

    def _load_anew(self) -> None:
        try:
            self.context, self.expires = self._load()
        except ConfigError as error:
            logger.error("the certificate from before stays in use: %s", error)
        else:
            logger.info(
                "certificate %s was loaded anew, for new connections; it expires on %s",
                self._cert,
                self.expires,
            )

    def _look(self) -> list[tuple[int, ...] | None]:
        """What changes when one of the files does."""
        seen: list[tuple[int, ...] | None] = []
        for path in (self._cert, self._key, self._client_ca):
            try:
                found = None if path is None else os.stat(path)
            except OSError:
                found = None
            seen.append(found and (found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size))
        return seen

    def _load(self) -> tuple[ssl.SSLContext, str]:
        expires = _check(_server_context(self._cert, self._key), self._cert)
        context = _server_context(self._cert, self._key)
        if self._client_ca is not None:
            _trust(context, self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context, expires


def _server_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    set_policy(context)
    # A full handshake with an elliptic curve costs no more than a resumed one, and tickets
    # would need a key that all workers share.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    for path, what in ((cert, "certificate"), (key, "private key")):
        _check_readable(path, what)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _EncryptedKeyError:
        raise ConfigError(
            f"private key {key} is encrypted; nobody is there to give a password: decrypt it with "
            "openssl pkey, and chmod 600 it"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"private key {key} does not belong to certificate {cert}"
        else:
            why = (
                f"certificate {cert} and private key {key} cannot be loaded "
                f"({describe_error(error)})"
            )
        raise ConfigError(
            f"{why}; name a pair of files in PEM, the certificate's own first"
        ) from None
    return context


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    """In place of OpenSSL's question at the terminal."""
    raise _EncryptedKeyError


def _check_readable(path: str, what: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None


def _trust(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path, "the authorities of clients in")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise ConfigError(
            f"the authorities of clients in {path} cannot be loaded ({describe_error(error)}); "
            "name a file of certificates in PEM"
        ) from None
    if not context.get_ca_certs():
        raise ConfigError(
            f"{path} has no certificate of an authority; name the one that signs those of clients"
        )


def _check(server: ssl.SSLContext, path: str) -> str:
    """Makes a handshake with the certificate; when it expires.

    Raises:
        ConfigError: a client would refuse it whatever it trusts: it has expired, for one.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is trusted itself
    try:
        client.load_verify_locations(cafile=path)
        return _expiry(_handshake(server, client))
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"certificate {path} is refused: {error.verify_message}; get a new one, "
            "or set the clock right"
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(
            f"certificate {path} does not work in a handshake ({describe_error(error)})"
        ) from None


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """The server's certificate, as the client found it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return theirs.getpeercert() or {}


def _expiry(certificate: dict[str, Any]) -> str:
    return str(certificate.get("notAfter", "a day that it does not say"))
