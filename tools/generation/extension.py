"""``src/fastframe/numbers.pxi``: the constants of the extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generation.schema import SOURCE, constant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generation.schema import Entry, Schema


def extension_numbers(schema: Schema) -> str:
    functions, codes = schema["function"], schema["return_code"]
    states, reasons = schema["state"], schema["close_reason"]
    slots, slot_bytes, header_bytes = (
        schema["sizes"][size] for size in ("slot_count", "slot_bytes", "header_bytes")
    )
    switches = {entry["name"]: constant(entry) for entry in functions}
    lines = [
        f"# Made by tools/generate.py from {SOURCE}; change that, and run make generate.",
        "",
        "cdef extern from *:",
        '    """',
        f"    _Static_assert(SLOTS == {slots} && SLOT_BYTES == {slot_bytes},",
        f'                   "layout.h and {SOURCE} differ");',
        f"    _Static_assert(CODES > {len(codes)} && REASONS >= {len(reasons)},",
        '                   "the store has too little room for the counters");',
        '    """',
        "",
        *enum((constant(entry), f"0x{entry['id']:08X}") for entry in functions),
        "",
        *enum([("HEADER_BYTES", str(header_bytes))]),
        "",
        *enum((constant(entry), f"0x{entry['code']:04X}") for entry in codes),
        "",
        "# Rows of the per-function counters; row FIRST_USER and later are users' own.",
        *enum(
            (name, str(row))
            for row, name in enumerate(
                [*(f"ROW_{constant(entry)}" for entry in functions), "ROW_UNKNOWN", "FIRST_USER"]
            )
        ),
        "",
        "ROWS = (",
        *(f"    FuncID.{entry['name']}," for entry in functions),
        ")",
        "ROW_OF_UNKNOWN = ROW_UNKNOWN",
        "FIRST_USER_ROW = FIRST_USER",
        "ROW_COUNT = FUNCTIONS",
        "",
        "# States as they stand in the store.",
        *enum((entry["name"], f"STATE_{entry['name']}") for entry in states),
        "",
        "cdef dict STATE_OF = {",
        *(f"    {entry['name']}: State.{entry['name']}," for entry in states),
        "}",
        "cdef dict ROW_OF_SWITCH = {",
        *(f"    State.{entry['name']}: ROW_{switches[entry['switch']]}," for entry in states),
        "}",
        "",
        "# Columns of the per-function counters: the known return codes; all others in the last",
        "# one, which stays there when codes are added, for a new program may take over memory.",
        *enum(
            [
                *((f"COLUMN_{entry['name']}", str(row)) for row, entry in enumerate(codes)),
                ("COLUMN_OTHER", "CODES - 1"),
            ]
        ),
        "",
        "CODE_COLUMNS = (",
        *(f"    ReturnCode.{entry['name']}," for entry in codes),
        ")",
        "",
        "",
        "cdef int column_of(uint32_t code) noexcept nogil:",
    ]
    for entry in codes:
        lines += [
            f"    if code == {constant(entry)}:",
            f"        return COLUMN_{entry['name']}",
        ]
    lines += [
        "    return COLUMN_OTHER",
        "",
        "",
        "# Bits of ServerFrames.status: what the caller has to look after.",
        *flags(schema["flag"], [1 << bit for bit in range(len(schema["flag"]))]),
        "",
        "# What ClientFrames makes of a reply.",
        *flags(schema["outcome"], [*range(len(schema["outcome"]))]),
    ]
    return "\n".join(lines) + "\n"


def enum(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return ["cdef enum:", *(f"    {name} = {value}" for name, value in pairs)]


def flags(entries: list[Entry], values: list[int]) -> list[str]:
    """Numbers for Python, and for the extension under their shorter names."""
    both = [*zip(entries, values, strict=True)]
    return [
        *(f"{entry['name']} = {value}" for entry, value in both),
        "cdef enum:",
        *(f"    {constant(entry)} = {value}  # {entry['means']}" for entry, value in both),
    ]
