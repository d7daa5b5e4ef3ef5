"""Fuzzes one target, guided by coverage of the extension: ``make fuzz`` builds what that needs.

In build/fuzz, an input that finds a fault is kept as ``crash-...``, and inputs that reach new code
in ``corpus``. The input of a fault that was mended goes to tests/fuzz/corpus, which
tests/fuzz/test_corpus.py runs with every suite.

    python -m tests.fuzz.fuzz TARGET [options of libFuzzer]
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Runs until libFuzzer's options say so, or something is found."""
    name, *options = sys.argv[1:]
    found = BUILD / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    corpora = [str(found), str(CORPUS / name)]  # new inputs go to the first
    atheris.Setup([sys.argv[0], f"-artifact_prefix={BUILD}/", *options, *corpora], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
