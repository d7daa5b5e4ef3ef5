"""``iproto serve --reload``: a server that starts anew when a source file changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from iproto.cli.output import print_error
from iproto.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from watchfiles import Change


def serve_with_reload(command_line: Sequence[str]) -> int:
    """Runs ``iproto serve`` in a child process, and anew after each change of a source file.

    Files count that end in ``.py`` or ``.toml``, in the current folder and those in it.
    A server that cannot start, for an error in such a file, is started after the next change.

    Args:
        command_line: that of this command, without ``iproto``.

    Returns:
        The exit code of the last child, after SIGTERM, SIGINT or SIGHUP.

    Raises:
        ConfigError: watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ConfigError(
            "--reload needs watchfiles, which is not installed here; pip install 'iproto[reload]'"
        ) from None
    child = _Child([argument for argument in command_line if argument != "--reload"])
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # the second one: the child cuts its drain short
            child.send(signal.SIGTERM)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    child.start()
    for changes in watch(
        os.getcwd(),
        watch_filter=PythonFilter(extra_extensions=(".toml",)),
        stop_event=stop,
        raise_interrupt=False,
    ):
        print_error(f"{_names(changes)} changed; starting anew")
        child.stop()
        child.start()
    return child.stop()


class _Child:
    """The server's process, one after the other.

    It has a session of its own, so that a terminal's Ctrl-C is this process's to pass on,
    once: a second signal would cut its drain short.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "iproto", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, start_new_session=True)

    def send(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> int:
        """Lets it drain; its exit code, or 128 and the number of the signal that ended it."""
        self.send(signal.SIGTERM)
        code = 0 if self._process is None else self._process.wait()
        return code if code >= 0 else 128 - code


def _names(changes: set[tuple[Change, str]]) -> str:
    names = sorted(os.path.relpath(path) for _, path in changes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
