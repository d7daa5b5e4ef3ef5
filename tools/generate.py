"""Writes what is made of the protocol's numbers: ``schema/iproto.toml`` is their one source.

``make generate`` writes; ``make lint`` runs it with ``--check``, which writes nothing and fails
where a file is not what would be written.

``src/fastframe/numbers.pxi`` is written whole. Of other files only the lines between two
marks of theirs are: ``generated: NAME`` and ``end of NAME``, in comments of the file's own kind.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Schema = dict[str, Any]
    Entry = dict[str, Any]

ROOT = Path(__file__).parent.parent
SOURCE = "schema/iproto.toml"
LINE_LENGTH = 100


def main() -> None:
    schema = tomllib.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    check(schema)
    stale = []
    for path, made in files(schema).items():
        file = ROOT / path
        if file.read_text(encoding="utf-8") != made:
            stale.append(path)
            if "--check" not in sys.argv:
                file.write_text(made, encoding="utf-8")
    if "--check" not in sys.argv:
        print("wrote", ", ".join(stale) or "nothing: all is as it was")
    elif stale:
        sys.exit(f"not what {SOURCE} makes: {', '.join(stale)}; run make generate")


def files(schema: Schema) -> dict[str, str]:
    """Everything that is generated, by path."""
    made = {"src/fastframe/numbers.pxi": extension_numbers(schema)}
    for path, blocks in BLOCKS.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for name, lines in blocks.items():
            text = replace_block(path, text, name, lines(schema))
        made[path] = text
    return made


def replace_block(path: str, text: str, name: str, lines: Iterable[str]) -> str:
    """The text with other lines between the two marks of a block, indented as the marks are."""
    pattern = rf"^( *)(.*\bgenerated: {name}\b.*\n)(?:.*\n)*?( *.*\bend of {name}\b.*)$"
    found = re.findall(pattern, text, re.MULTILINE)
    if len(found) != 1:
        sys.exit(f"{path}: expected one block 'generated: {name}' … 'end of {name}'")
    indent, first, last = found[0]
    body = "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)
    return re.sub(pattern, lambda _: indent + first + body + last, text, flags=re.MULTILINE)


# Rules that the numbers keep.


def check(schema: Schema) -> None:
    """Ends the program where the schema contradicts itself."""
    for kind, key in (
        ("function", "id"),
        ("status", "value"),
        ("return_code", "code"),
        ("state", "value"),
    ):
        numbers = [entry[key] for entry in schema[kind]]
        if len(set(numbers)) != len(numbers):
            sys.exit(f"{SOURCE}: two entries of {kind} have the same {key}")
    for kind in ("function", "return_code", "state", "close_reason", "flag", "outcome"):
        names = [entry["name"] for entry in schema[kind]]
        if len(set(names)) != len(names):
            sys.exit(f"{SOURCE}: two entries of {kind} have the same name")
    statuses = {entry["value"] for entry in schema["status"]}
    for entry in schema["return_code"]:
        if entry["code"] & 0xFF not in statuses:
            sys.exit(f"{SOURCE}: the low byte of {entry['name']} is no completion status")
    if schema["return_code"][0]["code"] != 0:
        sys.exit(f"{SOURCE}: the first return code must be OK: metrics count it in column 0")


# Names and texts.


def constant(entry: Entry) -> str:
    return str(entry.get("constant", entry["name"]))


def docstring(text: str) -> str:
    """A Markdown text as a docstring of one sentence."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "``")
    return f'"""{plain[0].upper()}{plain[1:]}."""'


def wrapped(text: str) -> list[str]:
    """A docstring in lines that are not too long behind an indent of 4."""
    if len(text) <= LINE_LENGTH - 4:
        return [text]
    at = text.rindex(" ", 0, LINE_LENGTH - 4)
    return [text[:at], *wrapped(text[at + 1 :])]


def by_number(entries: list[Entry], key: str) -> list[Entry]:
    return sorted(entries, key=lambda entry: int(entry[key]))


def errors(schema: Schema) -> list[Entry]:
    return [code for code in by_number(schema["return_code"], "code") if code["code"]]


# src/iproto/wire.py


def members(kind: str, key: str, number: str, text: str) -> Callable[[Schema], list[str]]:
    """Members of an enum, each with its docstring."""

    def lines(schema: Schema) -> list[str]:
        made = []
        for entry in schema[kind]:
            made.append(f"{entry['name']} = {number.format(entry[key])}")
            if text in entry:
                made += wrapped(docstring(entry[text]))
        return made

    return lines


def functions_enum(schema: Schema) -> list[str]:
    made = []
    for entry in schema["function"]:
        made.append(f"{entry['name']} = 0x{entry['id']:08X}")
        shape = f"{entry['does']}. Request: {entry['request']}; response: {entry['response']}"
        made += wrapped(docstring(shape))
    return made


def refusals(schema: Schema) -> list[str]:
    names = [code["name"] for code in errors(schema) if not code.get("may_have_executed")]
    return [
        "REFUSALS = frozenset(",
        "    {",
        *(f"        ReturnCode.{name}," for name in names),
        "    }",
        ")",
        '"""Return codes that say that the request was not executed."""',
    ]


def close_reasons_enum(schema: Schema) -> list[str]:
    made = []
    for number, entry in enumerate(schema["close_reason"]):
        made += [f"{entry['name']} = {number}", *wrapped(docstring(entry["because"]))]
    return made


def sizes(schema: Schema) -> list[str]:
    found = schema["sizes"]
    return [
        f"HEADER_BYTES = {found['header_bytes']}",
        '"""Three little-endian uint32: func_id, body_length, request_id."""',
        "",
        f"SLOT_COUNT = {found['slot_count']}",
        f'"""Slots of the storage; their indexes are 0..{found["slot_count"] - 1}."""',
        "",
        f"SLOT_BYTES = {found['slot_bytes']}",
        '"""The longest string that a slot holds, in bytes (not characters)."""',
        "",
        f"RESERVED_FUNC_IDS = range(0x{found['reserved_first']:08X}, "
        f"0x{found['reserved_last'] + 1:08X})",
        '"""Kept for built-in functions; no user function may have one of these."""',
        "",
        f"DESCRIBE_FUNCTIONS = 0x{found['describe_functions']:08X}",
        '"""Answers what user functions there are, where the server lets it."""',
    ]


# src/fastframe/numbers.pxi


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


# src/iproto/_fastframe.pyi


def stub(kind: str) -> Callable[[Schema], list[str]]:
    return lambda schema: [f"{entry['name']}: Final[int]" for entry in schema[kind]]


# docs/


def table(columns: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "",
        f"| {columns} |",
        "|" + "---|" * (columns.count("|") + 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def functions_table(schema: Schema) -> list[str]:
    return table(
        "`func_id` | name | request body | response body | what it does",
        (
            (f"`{f['id']:#010x}`", f["name"], f["request"], f["response"], f["does"])
            for f in schema["function"]
        ),
    )


def statuses_table(schema: Schema) -> list[str]:
    return table(
        "status | name | means",
        ((str(s["value"]), s["name"], s["means"]) for s in schema["status"]),
    )


def codes_table(schema: Schema) -> list[str]:
    codes = by_number(schema["return_code"], "code")
    return table(
        "code | name | when", ((f"`{c['code']:#06x}`", c["name"], c["when"]) for c in codes)
    )


def states_table(schema: Schema) -> list[str]:
    codes = {entry["name"]: entry["code"] for entry in schema["return_code"]}

    def verdict(state: Entry, what: str) -> str:
        code = state.get(what)
        return "yes" if code is None else f"`{code}` {codes[code]:#06x}"

    return table(
        "state | reads | writes",
        (
            (
                f"`{s['name']}`" + (" (at first)" if s["value"] == 0 else ""),
                verdict(s, "reads"),
                verdict(s, "writes"),
            )
            for s in schema["state"]
        ),
    )


def errors_table(schema: Schema) -> list[str]:
    return table(
        "code | name | class | retryable | may have executed | who acts",
        (
            (
                f"`{c['code']:#06x}`",
                c["name"],
                f"`{c['exception']}`",
                "yes" if c["code"] & 0xFF == 1 else "no",
                "yes" if c.get("may_have_executed") else "no",
                c["who_acts"],
            )
            for c in errors(schema)
        ),
    )


def reasons_table(schema: Schema) -> list[str]:
    return table(
        "reason | the connection ended because",
        ((f"`{r['name'].lower()}`", r["because"]) for r in schema["close_reason"]),
    )


BLOCKS: dict[str, dict[str, Callable[[Schema], Iterable[str]]]] = {
    "src/iproto/wire.py": {
        "sizes": sizes,
        "functions": functions_enum,
        "statuses": members("status", "value", "{}", "means"),
        "return codes": members("return_code", "code", "0x{:04X}", "when"),
        "refusals": refusals,
        "states": members("state", "value", "{}", ""),
        "close reasons": close_reasons_enum,
    },
    "src/iproto/_fastframe.pyi": {"flags": stub("flag"), "outcomes": stub("outcome")},
    "docs/protocol.md": {
        "states": states_table,
        "functions": functions_table,
        "statuses": statuses_table,
        "return codes": codes_table,
    },
    "docs/errors.md": {"return codes": errors_table},
    "docs/metrics.md": {"close reasons": reasons_table},
}

if __name__ == "__main__":
    main()
