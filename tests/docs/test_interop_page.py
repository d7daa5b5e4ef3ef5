"""docs/interop.md: its limits are those of the code, and its texts those of the tests."""

from __future__ import annotations

import re

import pytest

from tests.helpers.markdown import DOCS, table
from tests.helpers.net_rpc import AROUND_BODY, ORIGINAL_TEXTS
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.checkout

SOURCE = ROOT / "src" / "fastframe"


def test_the_limits_of_a_connection_are_those_of_the_code() -> None:
    defined = dict(re.findall(r"^#define GOB_(\w+) (\d+)$", (SOURCE / "gob.h").read_text(), re.M))
    names = ("TYPES", "FIELDS", "DEPTH", "METHOD")
    rows = table("interop.md", "Limits of a connection", "limit")
    shown = [row["value"].split(";")[0] for row in rows]
    assert shown == [*(defined[name] for name in names), str(AROUND_BODY)]
    faults = (SOURCE / "gob.pxi").read_text()
    for number in (defined[name] for name in names):
        assert re.search(rf"\b{number}\b", faults), f"no fault names {number}"


def test_the_originals_texts_are_in_the_code() -> None:
    texts = (SOURCE / "netrpc.pxi").read_text()
    assert all(text.decode() in texts for text in ORIGINAL_TEXTS)


def test_the_lines_of_the_log_are_those_of_the_code() -> None:
    page = (DOCS / "interop.md").read_text()
    code = re.sub(r'"\n\s*"', "", (SOURCE / "netrpc.pxi").read_text())
    shown = re.findall(r"was ended: (it .*)$", page, re.MULTILINE)
    assert len(shown) == 2
    assert all(f'"{text}"' in code for text in shown)
