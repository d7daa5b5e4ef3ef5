"""The beginning and the end of a serving process: importing the user's app, and leaving."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from typing import TYPE_CHECKING

from iproto.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from iproto.app import App

logger = logging.getLogger("iproto.server")

_IMPORT_FOLDER = os.path.dirname(importlib.__file__)

# Where Python and packages are installed, and this package is.
_LIBRARIES = (
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
)

# Seconds that threads have to end after the server has: those of user functions whose
# time-out has passed run on.
EXIT_WAIT = 3.0

# What a server handles, and what is lost where its parent has blocked it.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


def reset_process() -> None:
    """Undoes what the parent may have left to this process: signals, standard streams.

    Signals that it blocked or ignored are delivered as ever; a child's end is
    noticed though the parent ignored SIGCHLD; a closed standard stream is open to
    /dev/null, so that no socket gets its number.
    """
    # SIGHUP stays ignored, as nohup wants it, until there is a handler.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def end_on_sigterm() -> None:
    """SIGTERM before anything is served ends the process, with code 0.

    The system does not deliver it to process 1, a container's first, while that
    has no handler. The event loop's handler takes the place of this one.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, end)


def leave(code: int) -> int:
    """Ends a serving process, whatever its threads still do.

    Args:
        code: the exit code. With 0 it comes back: what runs at a process's end runs,
            and threads have a last while to end.
    """
    if code != 0:
        logging.shutdown()
        os._exit(code)
    threading.Thread(target=_cut_short, name="iproto-exit", daemon=True).start()
    return code


def _cut_short() -> None:
    """Ends the process if it has not ended by itself: Python waits for every thread."""
    time.sleep(EXIT_WAIT)
    names = ", ".join(
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    )
    logger.warning("threads that did not end within %g s are cut short: %s", EXIT_WAIT, names)
    logging.shutdown()
    os._exit(0)


def load_app(name: str) -> App:
    """Imports a user's app; the current folder comes first.

    Args:
        name: ``MODULE:APP``.

    Raises:
        ConfigError: in one line, what is wrong, with the place in the user's code.
    """
    from iproto.app import App  # not at the top: who has none needs no MsgPack

    module_name, colon, attribute = name.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        raise ConfigError(f"app {name!r} names a file; {_as_module(module_name, attribute)}")
    if not (module_name and colon and attribute):
        raise ConfigError(f"app {name!r} must be MODULE:APP, for example myservice:app")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        logger.debug("cannot import %r", module_name, exc_info=error)
        raise ConfigError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}{place_of(error)}"
        ) from None
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = f"a {type(app).__name__}" if app is not None else "not there"
        raise ConfigError(f"{attribute!r} in {module_name!r} must be an iproto.App; it is {found}")
    return app


def _as_module(path: str, attribute: str) -> str:
    """How the app in a file is to be named."""
    path = os.path.relpath(path) if os.path.isabs(path) else os.path.normpath(path)
    folders, file = os.path.split(path)
    up = ""
    if folders.startswith(".."):  # no module of the current folder
        up = f"in the folder {os.path.abspath(folders)} "
        folders = ""
    module = ".".join([*filter(None, folders.split("/")), file.removesuffix(".py")])
    return f"{up}it is the module {module}:{attribute or 'app'}"


def place_of(error: Exception) -> str:
    """File and line of the user's own code that raised, if any did.

    That is the innermost line outside of installed packages and of Python's own
    library; if all of the app is installed, the outermost one, its module's.
    """
    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith("<") and frame.f_code.co_filename != __file__
    ]
    lines = [(file, number) for file, number in lines if os.path.dirname(file) != _IMPORT_FOLDER]
    own = [line for line in lines if not line[0].startswith(_LIBRARIES)]
    if isinstance(error, SyntaxError) and error.filename:  # its place has no frame
        own.append((error.filename, error.lineno or 0))
    if not own:
        own = lines[:1]
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
