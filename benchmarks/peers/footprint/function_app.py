"""The greeting as a function of an app of ours, for `iproto serve`."""

from __future__ import annotations

import iproto
from benchmarks.peers.footprint.greeting import FUNC_ID, greet

app = iproto.App()
app.function(FUNC_ID)(greet)
