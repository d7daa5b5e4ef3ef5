"""Writes what is made of the protocol's numbers: ``schema/iproto.toml`` is their one source.

``make generate`` writes; ``make lint`` runs it with ``--check``, which writes nothing and fails
where a file is not what would be written.

``src/fastframe/numbers.pxi`` and ``src/README.md`` are written whole. Of other files only the
lines between two marks of theirs are: ``generated: NAME`` and ``end of NAME``, in comments of
the file's own kind.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from generation.extension import extension_numbers
from generation.modules import modules_page
from generation.python_code import (
    close_reasons_enum,
    exception_instances,
    exception_names,
    exceptions,
    functions_enum,
    members,
    refusals,
    sizes,
    stub,
)
from generation.schema import ROOT, load
from generation.tables import (
    codes_table,
    errors_table,
    functions_table,
    reasons_table,
    states_table,
    statuses_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from generation.schema import Schema


def main() -> None:
    schema = load()
    stale = []
    for path, made in files(schema).items():
        file = ROOT / path
        if not file.exists() or file.read_text(encoding="utf-8") != made:
            stale.append(path)
            if "--check" not in sys.argv:
                file.write_text(made, encoding="utf-8")
    if "--check" not in sys.argv:
        print("wrote", ", ".join(stale) or "nothing: all is as it was")
    elif stale:
        sys.exit(f"not what make generate makes: {', '.join(stale)}; run it")


def files(schema: Schema) -> dict[str, str]:
    """Everything that is generated, by path."""
    made = {
        "src/fastframe/numbers.pxi": extension_numbers(schema),
        "src/README.md": modules_page(),
    }
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
    "src/iproto/errors.py": {"names of exceptions": exception_names, "exceptions": exceptions},
    "src/iproto/_fastframe.pyi": {"flags": stub("flag"), "outcomes": stub("outcome")},
    "tests/typing/public_api.py": {"exceptions": exception_instances},
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
