"""The model of the lock (``model/lock.pml``): spin finds no fault in it, and finds the faults
that are put into it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ROOT / "model" / "lock.pml"

TOOLS = ("spin", "cc")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(
        bool(MISSING), reason=f"checks the model with {' and '.join(MISSING)}, not installed"
    ),
]

PATIENCE = 100.0
"""Seconds after which a check hangs; the slowest takes 3."""


class Verdict(NamedTuple):
    errors: int
    states: int
    said: str


def run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def verify(place: Path, *defines: str, mutant: bool = False) -> Verdict:
    """Runs the model with these ``-D`` in an empty directory; larger ones: model/Makefile."""
    live = "LIVE" in defines
    shutil.copy(MODEL, place)
    build = [
        ["spin", "-Pcc -E -x c", "-a", *(f"-D{define}" for define in defines), MODEL.name],
        # Time goes into the compiler for a mutant, into the search for the others.
        ["cc", "-O0" if mutant else "-O1", "-w", "-DCOLLAPSE", "-DVECTORSZ=2048"]
        + (["-DNP", "-DNFAIR=3"] if live else ["-DSAFETY"])
        + ["-o", "pan", "pan.c"],
    ]
    for command in build:
        made = run(place, command)
        assert made.returncode == 0, made.stdout + made.stderr
    ran = run(place, ["./pan", "-m100000", "-w22", *(["-l", "-f"] if live else [])])
    errors = re.search(r"errors: (\d+)", ran.stdout)
    states = re.search(r"(\d+) states, stored", ran.stdout)
    assert errors, ran.stdout + ran.stderr
    assert states, ran.stdout + ran.stderr
    # A search that was cut short proves nothing.
    assert "max search depth too small" not in ran.stdout
    assert "Search not completed" not in ran.stdout or int(errors[1])
    return Verdict(int(errors[1]), int(states[1]), ran.stdout)


@pytest.mark.parametrize(
    "defines",
    [
        # Waits have no end, so a lock that is left taken is a deadlock.
        "OPS=2",
        "OPS=1 STATES=3 HOLD=2",
        "OPS=1 TURNS",
        "WORKERS=1 THREADS=2 OPS=2",
        # Waits may be given up; in the end the lock must be free.
        "OPS=1 STATES=3 CRASHES=2 TURNS TIMEOUTS",
        # Somebody gets something done, again and again.
        "LIVE",
    ],
)
def test_the_model_holds(defines: str, tmp_path: Path) -> None:
    verdict = verify(tmp_path, *defines.split())
    assert verdict.errors == 0, verdict.said
    assert verdict.states > 10_000


MUTANTS = {
    # Of the readers' path.
    "NO_BACKOFF": "assertion violated ((writing==1)&&(reading==0))",
    "LOOK_FIRST": "assertion violated ((writing==1)&&(reading==0))",
    "KEEPS_ITS_ONE": "invalid end state",
    # Of the writers'.
    "IGNORES_READERS": "assertion violated ((writing==1)&&(reading==0))",
    "NEVER_KEEPS_WRITER LIVE": "non-progress cycle",
    "KEEPS_WRITER TIMEOUTS": "assertion violated",
    "STATE_OUTSIDE": "assertion violated  !((promised&&",
    "EARLY_REPLY": "assertion violated",
    # Of the turn.
    "TURN_SUFFICES TURNS OPS=1": "assertion violated",
    "GIVES_BLINDLY TURNS": "assertion violated",
    # Of the slot; the readers find it out themselves.
    "IN_PLACE UNWATCHED": "assertion violated (first==value)",
    "FLIPS_FIRST UNWATCHED": "assertion violated (first==value)",
    # Of the recovery.
    "NO_RECOVERY": "invalid end state",
    "FORGETS_READERS": "assertion violated",
    "FORGETS_WRITER": "assertion violated",
    "RECOVERS_THE_LIVING": "assertion violated",
    "RESPAWNS_FIRST": "assertion violated (writer==(area+1))",
    "CLEARS_BLINDLY": "assertion violated (writer==(area+1))",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_put_into_it_is_found(mutant: str, tmp_path: Path) -> None:
    verdict = verify(tmp_path, *f"MUTANT_{mutant}".split(), mutant=True)
    assert verdict.errors > 0
    assert MUTANTS[mutant] in verdict.said


def test_every_fault_is_tried() -> None:
    named = set(re.findall(r"MUTANT_([A-Z_]+)", MODEL.read_text()))
    assert named == {mutant.split()[0] for mutant in MUTANTS}
