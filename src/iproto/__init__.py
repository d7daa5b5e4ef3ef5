"""Serve and call Mail.ru's iproto protocol, fast.

The vocabulary and the errors are here at once; the rest is imported when it is
first used, so that a program that only calls does not load the server, and the
command line answers quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iproto import errors, wire
from iproto._version import __version__
from iproto.errors import *  # noqa: F403
from iproto.wire import *  # noqa: F403

if TYPE_CHECKING:
    from iproto._fastframe import Storage as Storage
    from iproto.app import App as App
    from iproto.client.async_client import AsyncClient as AsyncClient
    from iproto.client.blocking_client import Client as Client
    from iproto.server.config import Config as Config
    from iproto.server.listener_config import ListenerConfig as ListenerConfig
    from iproto.server.peer import Peer as Peer
    from iproto.server.peer import current_peer as current_peer
    from iproto.server.run import run as run
    from iproto.server.server import Server as Server
    from iproto.storage.file import open_storage as open_storage

_MODULE_OF = {
    "App": "app",
    "AsyncClient": "client.async_client",
    "Client": "client.blocking_client",
    "Config": "server.config",
    "ListenerConfig": "server.listener_config",
    "Peer": "server.peer",
    "Server": "server.server",
    "Storage": "_fastframe",
    "current_peer": "server.peer",
    "open_storage": "storage.file",
    "run": "server.run",
}

__all__ = [
    "App",
    "AsyncClient",
    "Client",
    "Config",
    "ListenerConfig",
    "Peer",
    "Server",
    "Storage",
    "__version__",
    "current_peer",
    "open_storage",
    "run",
]
__all__ += errors.__all__
__all__ += wire.__all__


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
