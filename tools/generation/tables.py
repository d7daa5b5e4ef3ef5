"""Tables of the docs that are made of the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generation.schema import by_number, errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generation.schema import Entry, Schema


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
