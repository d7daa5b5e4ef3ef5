"""For the tests of services: a server in a thread, clients of it, and faults in between.

``pytest_plugins = ["iproto.testing.fixtures"]`` in a ``conftest.py`` has them as fixtures.
"""

from __future__ import annotations

from iproto.testing.faults import Faults
from iproto.testing.serving import RunningServer, serve

__all__ = ["Faults", "RunningServer", "serve"]
