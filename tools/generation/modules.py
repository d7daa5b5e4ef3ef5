"""``src/README.md``: what is in each module of the package, by the first line of its docstring."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from generation.schema import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "src" / "iproto"

HEAD = """\
<!-- Made by tools/generate.py from the first sentences of docstrings; run make generate. -->

# What is where

The package, room by room. How they fit together, and which may import which:
[CONTRIBUTING.md](../CONTRIBUTING.md#how-the-code-is-laid-out). The extension's parts are in
`fastframe/`, and the docstring of `_fastframe.pyx` maps them.
"""


def modules_page() -> str:
    rooms = [PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))]
    return HEAD + "".join(room(folder) for folder in rooms)


def room(folder: Path) -> str:
    lines = [f"\n## iproto/{folder.relative_to(PACKAGE)}/".replace("/./", "/"), ""]
    lines += [f"{purpose(folder / '__init__.py')}.", "", "| module | what is in it |", "|---|---|"]
    lines += [
        f"| `{file.name}` | {purpose(file)} |"
        for file in sorted(folder.glob("*.py"))
        if file.name != "__init__.py"
    ]
    return "\n".join(lines) + "\n"


def purpose(file: Path) -> str:
    """The first sentence of a module's docstring, as Markdown, without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.removesuffix(".").replace("``", "`").replace("|", "\\|")
