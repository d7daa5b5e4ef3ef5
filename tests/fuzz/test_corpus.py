"""Every input of the fuzzers' corpus, and simple changes of it, without a fuzzer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_finds_a_fault(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 3
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nor_does_an_input_with_a_few_bytes_changed(name: str) -> None:
    chance = random.Random(1)
    for path in sorted((CORPUS / name).iterdir()):
        for _ in range(5):
            data = bytearray(path.read_bytes())
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(data) + 1)
                data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
            TARGETS[name](bytes(data))
