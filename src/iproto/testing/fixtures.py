"""Fixtures of pytest: ``pytest_plugins = ["iproto.testing.fixtures"]`` in a ``conftest.py``.

A test suite overrides ``iproto_app``, and may override ``iproto_settings``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from iproto.client.blocking_client import Client
from iproto.testing.serving import RunningServer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.app import App


@pytest.fixture
def iproto_app() -> App | None:
    """The app that is served; none, if a test suite does not override this."""
    return None


@pytest.fixture
def iproto_settings() -> dict[str, Any]:
    """Fields of the server's ``Config``; ``bind`` and ``metrics_bind`` are not among them."""
    return {}


@pytest.fixture
def iproto_server(
    iproto_app: App | None, iproto_settings: dict[str, Any]
) -> Iterator[RunningServer]:
    """A server of the app, fresh for the test, with faults to inject."""
    with serve(iproto_app, **iproto_settings) as server:
        yield server


@pytest.fixture
def iproto_client(iproto_server: RunningServer) -> Iterator[Client]:
    """A blocking client of the server; ``iproto_server.url`` is for others."""
    with Client(iproto_server.url) as client:
        yield client
