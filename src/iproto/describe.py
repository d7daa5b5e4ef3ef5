"""What an app's functions are, in plain objects: for tools, and for readers.

``DESCRIBE_FUNCTIONS`` answers with it, page by page; ``iproto describe`` prints it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from iproto.results import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iproto.function import Function

# Bytes of MsgPack that a page holds, at most.
PAGE_BYTES = 1 << 16

# Characters of a docstring that are shown, at most.
DOC_CHARACTERS = 4096


class Description(TypedDict):
    """One function.

    ``parameters`` is the JSON Schema of the array of arguments, ``result`` that of the
    result; an empty schema takes anything.
    """

    func_id: int
    name: str
    signature: str
    doc: str
    parameters: dict[str, Any]
    result: dict[str, Any]
    timeout: float | None


class Page(TypedDict):
    """Some of them, in the order of their numbers."""

    functions: list[Description]
    next: int | None
    """Where the next page begins; None: this is the last."""


def describe(functions: Iterable[Function]) -> list[Description]:
    """All functions, in the order of their numbers."""
    return [_describe(function) for function in sorted(functions, key=lambda found: found.func_id)]


def page_from(descriptions: list[Description], first: int) -> Page:
    """The page that begins at a position of the list."""
    page: list[Description] = []
    size = 0
    for description in descriptions[first:]:
        size += len(pack(description))
        if page and size > PAGE_BYTES:
            return {"functions": page, "next": first + len(page)}
        page.append(description)
    return {"functions": page, "next": None}


def _describe(function: Function) -> Description:
    description: Description = {
        "func_id": function.func_id,
        "name": function.name,
        "signature": f"{function.name}{_short(function.signature)}",
        "doc": (inspect.getdoc(function.call) or "")[:DOC_CHARACTERS],
        "parameters": _parameters(function),
        "result": _schema(function.signature.return_annotation),
        "timeout": function.timeout,
    }
    if len(pack(description)) > PAGE_BYTES:  # a schema that fits no page is no help
        description["parameters"] = description["result"] = {}
    return description


def _short(signature: inspect.Signature) -> str:
    """A signature as one reads it; no default's text is longer than some words."""
    parameters = [
        parameter.replace(default=_Shown(parameter.default))
        if parameter.default is not inspect.Parameter.empty
        else parameter
        for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters))


class _Shown:
    """A default, whose repr is cut."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        text = repr(self._value)
        return text if len(text) <= 60 else "..."


def _parameters(function: Function) -> dict[str, Any]:
    positional = [
        parameter
        for parameter in function.signature.parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    items, definitions = [], {}
    for parameter in positional:
        schema = _schema(parameter.annotation)
        definitions.update(schema.pop("$defs", {}))
        items.append({"title": parameter.name, **schema})
    found: dict[str, Any] = {
        "type": "array",
        "prefixItems": items,
        "minItems": function.arguments.least,
        "maxItems": len(positional),
    }
    return found | ({"$defs": definitions} if definitions else {})


def _schema(annotation: Any) -> dict[str, Any]:
    """The JSON Schema of an annotation; an empty one where there is none."""
    if annotation is inspect.Parameter.empty:
        return {}
    try:
        return msgspec.json.schema(annotation)
    except (TypeError, RuntimeError, NotImplementedError):
        return {}  # of a result: what is returned counts, not what the annotation says
