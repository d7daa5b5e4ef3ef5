"""Memory that worker processes share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile

from iproto.errors import ConfigError

# F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW, which Linux has.
_FIXED_SIZE = 0x1 | 0x2 | 0x4

_IN_MEMORY = "/dev/shm"


def shared_memory(size: int) -> int:
    """Descriptor of memory that child processes can map; it ends with the last of them.

    It is for this user alone (mode 0600), and its size is fixed where the system can do that.

    Args:
        size: bytes.

    Raises:
        ConfigError: the system has no room for it.
    """
    try:
        fd, can_be_sealed = _memory_file()
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, size)
            if can_be_sealed:
                # A process that shrinks it would end all others with SIGBUS.
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise ConfigError(f"cannot make {size} bytes of shared memory: {error.strerror}") from None
    return fd


def _memory_file() -> tuple[int, bool]:
    """An empty file in memory, and whether its size can be sealed."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # an old kernel has none, or a sandbox refuses it
            return os.memfd_create("iproto-storage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), True
    folder = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno()), False
