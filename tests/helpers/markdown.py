"""Pages of the documentation: their blocks of code, tables and sections, and running a session."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.helpers.harness import PATIENCE
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = ROOT / "docs"
DOC_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("src/*.md"), *DOC_PAGES]
)


# What the documentation shows, and tests replace by where they serve.
SHOWN_ADDRESS = "127.0.0.1:8080"
SHOWN_METRICS = "127.0.0.1:8088"


class Block(NamedTuple):
    """A fenced block: ``marks`` is what follows the language."""

    page: str
    line: int
    language: str
    marks: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page}:{self.line}"


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    lines: list[str] | None = None
    language = marks = ""
    begun = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            language, _, marks = line[3:].partition(" ")
            lines, begun = [], number
        else:
            yield Block(page.name, begun, language, marks, "\n".join(lines) + "\n")
            lines = None
    assert lines is None, f"{page.name}: the block of line {begun} has no end"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    parts = re.split(r"^#+ (.*)$", prose(DOCS / page), flags=re.MULTILINE)
    found = [text for name, text in zip(parts[1::2], parts[2::2], strict=True) if name == heading]
    assert len(found) == 1, f"{page} has {len(found)} sections {heading!r}"
    return found[0]


def cells(line: str) -> list[str]:
    """The cells of a table's row, without the backticks around a whole cell."""
    found = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in found]


def table(page: str, heading: str, first: str) -> list[dict[str, str]]:
    """The rows of the table in a section whose first column is called so, by column."""
    lines = section(page, heading).splitlines()
    for number, line in enumerate(lines):
        columns = cells(line)
        if line.startswith("|") and columns[0] == first:
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(dict(zip(columns, cells(row), strict=True)))
            return rows
    raise AssertionError(f"{page}, {heading!r}: no table begins with the column {first!r}")


def column(page: str, heading: str, first: str) -> list[str]:
    return [row[first] for row in table(page, heading, first)]


def all_blocks(language: str, *, docs_only: bool = False) -> list[Any]:
    pages = DOC_PAGES if docs_only else PAGES
    found = [block for page in pages for block in blocks(page) if block.language == language]
    return [pytest.param(block, id=block.label) for block in found]


def run_console(
    text: str, address: str, metrics: str, environment: dict[str, str], directory: Path
) -> None:
    """Runs the ``$`` lines of a block; what follows each is the output, ``...`` is anything."""

    def moved(said: str) -> str:
        return said.replace(SHOWN_ADDRESS, address).replace(SHOWN_METRICS, metrics)

    tools = str(Path(sys.executable).parent)
    for step in re.split(r"^\$ ", moved(text), flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        if "curl" in command and shutil.which("curl") is None:
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            env={
                **os.environ,
                **environment,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "IPROTO_URL": f"iproto://{address}",
            },
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        pattern = re.escape(expected).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, done.stdout), f"$ {command}\n{done.stdout}"
