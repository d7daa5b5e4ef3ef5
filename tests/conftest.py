from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.helpers")


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """Each kind of event loop that the server runs on."""
    return str(request.param)
