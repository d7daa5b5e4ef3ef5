"""Memory that worker processes share."""

from __future__ import annotations

import os
import tempfile

from iproto.errors import ConfigError


def shared_memory(size: int) -> int:
    """Descriptor of memory that child processes can map; it ends with the last of them.

    Args:
        size: bytes.

    Raises:
        ConfigError: the system has no room for it.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("iproto-storage", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"cannot make {size} bytes of shared memory: {error.strerror}") from None
    return fd
