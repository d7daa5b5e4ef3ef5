"""Every page: its links lead somewhere, its code runs, its sessions show what comes out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import iproto
from tests.helpers.harness import serving
from tests.helpers.markdown import (
    DOC_PAGES,
    DOCS,
    PAGES,
    SHOWN_ADDRESS,
    Block,
    all_blocks,
    path_of,
    prose,
    run_console,
)
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.checkout


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)]*)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    """Of a directory, to its README; and that to the others there."""
    linked = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *DOCS.glob("*/README.md"))
        for target in re.findall(r"\]\(([\w/-]+\.md)\)", prose(page))
    }
    assert linked >= set(DOC_PAGES)


@pytest.mark.parametrize("page", DOC_PAGES, ids=path_of)
def test_a_list_of_contents_names_every_section(page: Path) -> None:
    listed = re.findall(r"^- \[.*\]\(#(.*)\)$", prose(page), re.MULTILINE)
    if listed:
        headings = re.findall(r"^## (.*)$", prose(page), re.MULTILINE)
        assert listed == [slug(heading) for heading in headings]


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, block.label, "exec")


@pytest.mark.parametrize(
    "block", [p for p in all_blocks("python", docs_only=True) if p.values[0].marks == "run"]
)
def test_python_blocks_run(block: Block) -> None:
    with serving() as served:
        text = block.text.replace(SHOWN_ADDRESS, str(served.address))
        exec(compile(text, block.label, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", all_blocks("console", docs_only=True))
def test_console_blocks_show_what_comes_out(block: Block, tmp_path: Path) -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = str(served.server.metrics_address)
        run_console(block.text, str(served.address), metrics, {}, tmp_path)


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", prose(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert first[1] == iproto.__version__
