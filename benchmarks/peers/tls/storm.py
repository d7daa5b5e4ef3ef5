"""Many TLS handshakes at once, over sockets that do not block.

python -m benchmarks.peers.tls.storm PORT COUNT
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import sys
import time

PATIENCE = 30.0  # seconds for all of them


def main() -> int:
    port, count = map(int, sys.argv[1:])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    end = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(count):
            plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            plain.setblocking(False)
            sock = stack.enter_context(context.wrap_socket(plain, do_handshake_on_connect=False))
            selector.register(sock, selectors.EVENT_READ)
            advance(selector, sock)
        while selector.get_map():
            if time.monotonic() > end:
                return 1
            for key, _events in selector.select(1.0):
                assert isinstance(key.fileobj, ssl.SSLSocket)
                advance(selector, key.fileobj)
    return 0


def advance(selector: selectors.BaseSelector, sock: ssl.SSLSocket) -> None:
    """Goes on with a handshake; one that is done is not watched any more."""
    with contextlib.suppress(ssl.SSLWantReadError):
        sock.do_handshake()
        selector.unregister(sock)


if __name__ == "__main__":
    sys.exit(main())
