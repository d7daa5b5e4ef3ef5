"""What is made of the schema in Python: enums, exceptions, the constants of the stub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generation.schema import docstring, errors, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from generation.schema import Schema


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


def stub(kind: str) -> Callable[[Schema], list[str]]:
    return lambda schema: [f"{entry['name']}: Final[int]" for entry in schema[kind]]


def exception_names(schema: Schema) -> list[str]:
    return [f'"{name}",' for name in sorted(code["exception"] for code in errors(schema))]


def exceptions(schema: Schema) -> list[str]:
    """A class for each return code."""
    made = []
    for code in errors(schema):
        made += [
            "",
            "",
            f"class {code['exception']}(_CodedError):",
            *(f"    {line}" for line in wrapped(docstring(code["when"]))),
            "",
            f"    CODE = ReturnCode.{code['name']}",
        ]
    return [*made, "", ""]


def exception_instances(schema: Schema) -> list[str]:
    return [
        f'iproto.{name}("text"),' for name in sorted(code["exception"] for code in errors(schema))
    ]
