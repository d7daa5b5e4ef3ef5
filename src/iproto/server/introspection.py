"""The function that answers what user functions there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from iproto.describe import Page, describe, page_from
from iproto.function import Function
from iproto.wire import DESCRIBE_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence


def describing_function(functions: Sequence[Function]) -> Function:
    """A function that answers with the descriptions of others, page by page."""
    descriptions = describe(functions)

    def describe_functions(first: Annotated[int, msgspec.Meta(ge=0)] = 0) -> Page:
        """The user functions of this server, from a position of their list on."""
        return page_from(descriptions, first)

    return Function(DESCRIBE_FUNCTIONS, describe_functions, "DESCRIBE_FUNCTIONS", None)
