"""What a serving process does before it serves: logging, and the user's app."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from iproto.errors import ConfigError
from iproto.server.config import LOG_LEVELS, PANIC

if TYPE_CHECKING:
    from iproto.app import App


def set_up_logging(level: str) -> None:
    """Log lines go to stderr.

    Args:
        level: a key of ``LOG_LEVELS``.
    """
    logging.addLevelName(PANIC, "PANIC")
    logging.addLevelName(logging.CRITICAL, "FATAL")
    logging.basicConfig(
        level=LOG_LEVELS[level],
        format="%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s",
    )


def set_log_level(level: str) -> None:
    """Another level from now on.

    Args:
        level: a key of ``LOG_LEVELS``.
    """
    logging.getLogger().setLevel(LOG_LEVELS[level])


def leave(code: int) -> int:
    """Ends a serving process that was not done in time, whatever its threads still do.

    Args:
        code: the exit code; with 0 there is nothing to cut short, and it comes back.
    """
    if code != 0:
        logging.shutdown()
        os._exit(code)
    return code


def load_app(name: str) -> App:
    """Imports a user's app; the current folder comes first.

    Args:
        name: ``MODULE:APP``.

    Raises:
        ConfigError: in one line, what is wrong, with the place in the user's code.
    """
    from iproto.app import App  # not at the top: who has none needs no MsgPack

    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"app {name!r} must be MODULE:APP, for example myservice:app")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}{_place(error)}"
        ) from None
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = f"a {type(app).__name__}" if app is not None else "not there"
        raise ConfigError(f"{attribute!r} in {module_name!r} must be an iproto.App; it is {found}")
    return app


def _place(error: Exception) -> str:
    """File and line of the user's own code that raised, if any did."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and file != __file__ and "importlib" not in file:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
