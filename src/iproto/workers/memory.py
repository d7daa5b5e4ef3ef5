"""Memory that worker processes share."""

from __future__ import annotations

import fcntl
import os
import tempfile

from iproto.errors import ConfigError

# F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW, which Linux has.
_FIXED_SIZE = 0x1 | 0x2 | 0x4


def shared_memory(size: int) -> int:
    """Descriptor of memory that child processes can map; it ends with the last of them.

    It is for this user alone (mode 0600), and its size is fixed where the system can do that.

    Args:
        size: bytes.

    Raises:
        ConfigError: the system has no room for it.
    """
    seals = hasattr(os, "memfd_create")
    if seals:
        fd = os.memfd_create("iproto-storage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        if seals:
            # A process that shrinks it would end all others with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"cannot make {size} bytes of shared memory: {error.strerror}") from None
    return fd
