"""The greeting as a function of ours: `iproto serve benchmarks.peers.function_app:app`."""

from __future__ import annotations

import iproto
from benchmarks.peers.greeting import FUNC_ID, greet

app = iproto.App()
app.function(FUNC_ID)(greet)
