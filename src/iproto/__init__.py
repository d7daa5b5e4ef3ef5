"""Serve and call Mail.ru's iproto protocol, fast.

Names are imported when they are first used, so that a program that only calls
does not load the server, and the command line answers quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from iproto._fastframe import Storage as Storage
    from iproto.app import App as App
    from iproto.client.async_client import AsyncClient as AsyncClient
    from iproto.client.blocking_client import Client as Client
    from iproto.errors import CallTimeoutError as CallTimeoutError
    from iproto.errors import ClientClosedError as ClientClosedError
    from iproto.errors import ConfigError as ConfigError
    from iproto.errors import ConnectError as ConnectError
    from iproto.errors import ConnectionLostError as ConnectionLostError
    from iproto.errors import DialectError as DialectError
    from iproto.errors import Error as Error
    from iproto.errors import FunctionTimeoutError as FunctionTimeoutError
    from iproto.errors import IllegalParamsError as IllegalParamsError
    from iproto.errors import InternalError as InternalError
    from iproto.errors import IprotoError as IprotoError
    from iproto.errors import LockedError as LockedError
    from iproto.errors import OutOfRangeError as OutOfRangeError
    from iproto.errors import OverloadedError as OverloadedError
    from iproto.errors import ProtocolError as ProtocolError
    from iproto.errors import RateLimitedError as RateLimitedError
    from iproto.errors import ReadOnlyError as ReadOnlyError
    from iproto.errors import TextError as TextError
    from iproto.errors import TransportError as TransportError
    from iproto.errors import UnsupportedCommandError as UnsupportedCommandError
    from iproto.server.config import Config as Config
    from iproto.server.server import Server as Server
    from iproto.server.server import run as run
    from iproto.storage.file import open_storage as open_storage
    from iproto.wire import CloseReason as CloseReason
    from iproto.wire import Dialect as Dialect
    from iproto.wire import FuncID as FuncID
    from iproto.wire import Header as Header
    from iproto.wire import Request as Request
    from iproto.wire import Response as Response
    from iproto.wire import ReturnCode as ReturnCode
    from iproto.wire import State as State

_MODULE_OF = {
    "App": "app",
    "AsyncClient": "client.async_client",
    "Client": "client.blocking_client",
    "Config": "server.config",
    "Server": "server.server",
    "Storage": "_fastframe",
    "open_storage": "storage.file",
    "run": "server.server",
    **dict.fromkeys(
        (
            "CloseReason",
            "Dialect",
            "FuncID",
            "Header",
            "Request",
            "Response",
            "ReturnCode",
            "State",
        ),
        "wire",
    ),
    **dict.fromkeys(
        (
            "CallTimeoutError",
            "ClientClosedError",
            "ConfigError",
            "ConnectError",
            "ConnectionLostError",
            "DialectError",
            "Error",
            "FunctionTimeoutError",
            "IllegalParamsError",
            "InternalError",
            "IprotoError",
            "LockedError",
            "OutOfRangeError",
            "OverloadedError",
            "ProtocolError",
            "RateLimitedError",
            "ReadOnlyError",
            "TextError",
            "TransportError",
            "UnsupportedCommandError",
        ),
        "errors",
    ),
}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 - all of them are str


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'iproto' has no attribute {name!r}")
    import importlib  # only when a name is used

    value = getattr(importlib.import_module(f"iproto.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
