"""TLS of one connection, without I/O: bytes of the wire on one side, frames on the other.

``ssl.MemoryBIO`` stands where a socket would: the socket's owner moves the bytes.
Servers and clients share this, with any event loop or none.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

# Bytes asked of OpenSSL at once; a record has at most 16 KiB.
_CHUNK = 65536

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, those with forward secrecy and authenticated encryption; 1.3 has no others."""

_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
    "HTTP_REQUEST": "it speaks HTTP, without TLS",
    "HTTPS_PROXY_REQUEST": "it speaks HTTP, without TLS",
    "NO_SHARED_CIPHER": "it offers no cipher that is allowed",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate, and one is required",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses the certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer refuses the certificate: it has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses the certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer refuses: no protocol or cipher that both take, "
    "or it wants a certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer takes no version of TLS that is allowed here",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of the certificate",
    "UNEXPECTED_MESSAGE": "a message came that is not allowed there",
    "UNKNOWN_PROTOCOL": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it takes no version of TLS that is allowed, which is 1.2 at least",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}


def set_policy(context: ssl.SSLContext) -> None:
    """Sets what both sides take: TLS 1.3, or 1.2 with modern ciphers and no renegotiation."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def describe_error(error: ssl.SSLError) -> str:
    """What went wrong, in plain words; OpenSSL's own where there are none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = error.verify_message.removesuffix(".")
        if text[1:2].islower():
            text = text[0].lower() + text[1:]
        return f"the peer's certificate is refused: {text}"
    reason = error.reason or ""
    return _REASONS.get(reason) or reason.replace("_", " ").lower() or str(error)


class Session:
    """TLS of one connection.

    Args:
        context: the settings.
        server_side: whether this is the server's side.
        server_name: the name that the server's certificate must have; for clients.

    Whatever raises ``ssl.SSLError`` ends the connection; ``take`` then has the alert for the
    peer.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "ended")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, server_name: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self.ended = False
        """Whether the peer has announced that it sends no more. It may still receive."""

    def put(self, data: bytes) -> None:
        """Takes what came from the peer, for ``handshake``."""
        self._incoming.write(data)

    def handshake(self) -> bool:
        """Goes on with the handshake; True when it is done.

        Raises:
            ssl.SSLError: it failed.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes) -> bytes:
        """Decrypts what came from the peer.

        Args:
            data: bytes from the wire; none for what is here already.

        Raises:
            ssl.SSLError: a record is wrong.
        """
        incoming, tls = self._incoming, self._tls
        if data:
            incoming.write(data)
        chunks = []
        try:
            # Not read until it fails: an exception costs as much as decrypting a request.
            while (incoming.pending or tls.pending()) and not self.ended:
                chunk = tls.read(_CHUNK)
                if chunk:
                    chunks.append(chunk)
                else:
                    self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def send(self, data: bytes | memoryview) -> None:
        """Encrypts what is to go to the peer; ``take`` has it then."""
        sent = 0
        while sent < len(data):  # one record after the other
            sent += self._tls.write(memoryview(data)[sent:] if sent else data)

    def take(self) -> bytes:
        """What is to be sent to the peer."""
        return self._outgoing.read()

    def close(self) -> None:
        """Announces to the peer that nothing more will be sent."""
        with contextlib.suppress(
            ssl.SSLError
        ):  # the peer has not announced its own end, and need not
            self._tls.unwrap()

    @property
    def version(self) -> str:
        """``TLSv1.3`` or ``TLSv1.2``; empty before the handshake is done."""
        return self._tls.version() or ""

    @property
    def peer_name(self) -> str | None:
        """The name in the peer's certificate, which was checked; None without one.

        The first alternative name, or else the common name of the subject.
        """
        certificate: Any = self._tls.getpeercert()
        if not certificate:
            return None
        names: list[str] = [value for _, value in certificate.get("subjectAltName", ())]
        for part in certificate.get("subject", ()):
            names += [value for key, value in part if key == "commonName"]
        return names[0] if names else None
