"""Imports run one way: this holds the table of what each room of the package may import.

The picture of it is in CONTRIBUTING.md, "How the code is laid out". A room is a package in
``src/iproto``, or a module beside those. An import counts wherever it stands: at the top, in a
function, or for the type checker alone.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.checkout

SOURCE = ROOT / "src"

# What everybody stands on; each may import those before it.
GROUND = (
    *("wire", "errors", "_version", "checks", "address", "sockets", "words", "results", "tls"),
    *("forks", "leftovers"),
)

ROOMS: dict[str, tuple[str, ...]] = {
    **{room: GROUND[:number] for number, room in enumerate(GROUND)},
    "_fastframe": ("wire", "errors"),
    "app": (*GROUND, "_fastframe"),
    "storage": (*GROUND, "_fastframe"),
    "client": (*GROUND, "_fastframe"),
    "metrics": (*GROUND, "_fastframe"),
    "server": (*GROUND, "_fastframe", "app", "storage", "metrics"),
    "workers": (*GROUND, "_fastframe", "storage", "metrics", "server"),
    "bench": (*GROUND, "_fastframe", "client"),
    "testing": (*GROUND, "_fastframe", "app", "client", "server"),
    "cli": (*GROUND, "app", "storage", "client", "server", "workers", "bench"),
}
"""Room → the rooms that it may import, beside itself."""

ROOM_OF = dict.fromkeys(("arguments", "describe", "direct", "function", "threads"), "app")
"""Modules that share a room with another one."""

FOR_USERS = ("iproto", "__main__")
"""They show what is in the rooms: they may import all, and no room imports them."""

LAZY = {("server", "metrics")}
"""Imports that may stand in functions only: they load what most processes do not need."""

NOT_FOR = {
    "_fastframe": ("asyncio", "selectors", "socket"),
    "app": ("selectors", "socket"),
    "client/blocking": ("asyncio",),
}
"""Room, or the beginning of a file's path → modules of others that it must not import."""

EXCEPTIONS = {
    ("iproto.client.blocking_link", "iproto.client.pool"),
    ("iproto.client.reasons", "iproto.client.route"),
}
"""Importer and imported of each import that stands although it is forbidden, or closes a circle.
Take away what is gone: the test fails on an exception that nobody needs any more."""


class Import(NamedTuple):
    """One import of one module."""

    importer: str
    imported: str
    line: int
    lazy: bool
    """Whether it is in a function, or for the type checker alone."""


def room_of(module: str) -> str:
    """``iproto.server.config`` → ``server``; ``iproto`` itself → ``iproto``."""
    name = (module + ".").split(".")[1] or module
    return ROOM_OF.get(name, name)


def modules() -> dict[str, Path]:
    """Every Python module of the package, by name."""
    found = {}
    for path in sorted((SOURCE / "iproto").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_in(source: str, importer: str, known: set[str]) -> list[Import]:
    """The imports that a module's source holds, wherever they stand.

    Args:
        source: the text.
        importer: the module's name.
        known: the package's modules, to tell ``from iproto import wire`` from a name in it.
    """
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = importer.split(".")[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            names = [
                full if (full := f"{base}.{alias.name}") in known else base for alias in node.names
            ]
        else:
            names = []
        found.extend(Import(importer, name, getattr(node, "lineno", 0), lazy) for name in names)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or is_lazy(node, child))

    visit(ast.parse(source), lazy=False)
    return found


def is_lazy(node: ast.AST, child: ast.AST) -> bool:
    """Whether a child of a node does not run when the module is imported."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return True
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        and child in node.body
    )


def all_imports() -> list[Import]:
    """Those of every module, and of the extension."""
    found = modules()
    known = {*found, "iproto._fastframe"}
    imports = [
        one for name, path in found.items() for one in imports_in(path.read_text(), name, known)
    ]
    for path in [SOURCE / "_fastframe.pyx", *sorted((SOURCE / "fastframe").glob("*.pxi"))]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r"\s*(?:from\s+([\w.]+)\s+)?import\s+([\w.]+)", line)
            if match:
                imports.append(Import("iproto._fastframe", match[1] or match[2], number, False))
    return imports


def forbidden(imports: list[Import]) -> list[Import]:
    """Those that the tables above do not allow."""
    return [one for one in imports if not is_allowed(one)]


def is_allowed(one: Import) -> bool:
    importer, imported = room_of(one.importer), room_of(one.imported)
    if not (one.imported + ".").startswith("iproto."):
        path = "/".join(one.importer.split(".")[1:])
        return not any(
            imported_top == one.imported.partition(".")[0]
            for room, never in NOT_FOR.items()
            if path.startswith(room)
            for imported_top in never
        )
    if importer == imported or importer in FOR_USERS:
        return True
    if (importer, imported) in LAZY and not one.lazy:
        return False
    return imported in ROOMS[importer]


def without(imports: list[Import], exceptions: set[tuple[str, str]]) -> list[Import]:
    """The imports that no exception is made for."""
    return [one for one in imports if (one.importer, one.imported) not in exceptions]


def circle(imports: list[Import]) -> list[str]:
    """Modules that import each other in a circle; none if there is no circle."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if (one.imported + ".").startswith("iproto.") and one.importer != one.imported:
            graph.setdefault(one.importer, set()).add(one.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_is_in_the_table() -> None:
    there = {room_of(module) for module in modules()} | {"_fastframe"}
    assert there == {*ROOMS, *FOR_USERS}


def test_imports_run_one_way() -> None:
    imports = without(all_imports(), EXCEPTIONS)
    assert forbidden(imports) == []
    assert circle(imports) == []


@pytest.mark.parametrize("exception", sorted(EXCEPTIONS))
def test_an_exception_is_still_needed(exception: tuple[str, str]) -> None:
    imports = without(all_imports(), EXCEPTIONS - {exception})
    assert forbidden(imports) or circle(imports), "take it out of EXCEPTIONS"


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("iproto.client.made_up", "from iproto.server.config import Config"),
        ("iproto.client.made_up", "from ..server import config"),
        ("iproto.client.made_up", "def f():\n    import iproto.server.config"),
        ("iproto.client.made_up", "def f():\n    from iproto.server import config"),
        ("iproto.client.made_up", "if TYPE_CHECKING:\n    from iproto.server.config import Config"),
        ("iproto.client.blocking_made_up", "import asyncio.events"),
        ("iproto.workers.made_up", "from iproto.cli import main"),
        ("iproto.metrics.made_up", "import iproto"),
        ("iproto.metrics.made_up", "from iproto import Storage"),
        ("iproto.server.made_up", "import iproto.metrics.endpoint"),
        ("iproto.errors", "from iproto.checks import checked_timeout"),
        ("iproto.app", "import socket"),
        ("iproto._fastframe", "import asyncio"),
    ],
)
def test_a_forbidden_import_is_found(importer: str, source: str) -> None:
    known = {*modules(), "iproto._fastframe"}
    assert forbidden(imports_in(source, importer, known)) != []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("iproto.client.made_up", "from iproto.client.url import Target\nimport asyncio"),
        ("iproto.client.made_up", "from iproto import wire\nfrom iproto._fastframe import Storage"),
        ("iproto.server.made_up", "def f():\n    from iproto.metrics.endpoint import Address"),
        ("iproto.cli.made_up", "def f():\n    from iproto.workers import supervisor"),
        ("iproto.__main__", "from iproto.cli.main import main"),
    ],
)
def test_an_import_down_the_table_is_allowed(importer: str, source: str) -> None:
    known = {*modules(), "iproto._fastframe"}
    assert forbidden(imports_in(source, importer, known)) == []


def test_the_picture_shows_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    picture = text.partition("Imports point one way")[2].split("```")[1]
    assert set(re.findall(r"[a-z_]+", picture)) >= {*ROOMS}


def test_a_circle_is_found() -> None:
    known = {*modules(), "iproto._fastframe"}
    there = imports_in("from iproto.server import heartbeat", "iproto.server.config", known)
    back = imports_in("def f():\n    import iproto.server.config", "iproto.server.heartbeat", known)
    assert circle(there) == []
    assert set(circle(there + back)) == {"iproto.server.config", "iproto.server.heartbeat"}


def test_the_headers_know_no_python() -> None:
    headers = sorted((SOURCE / "fastframe").glob("*.h"))
    assert headers
    for header in headers:
        assert "Python.h" not in header.read_text(), header.name
