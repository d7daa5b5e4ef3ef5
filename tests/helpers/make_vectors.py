"""Makes ``tests/codec/vectors/vectors.json``: exchanges that any server or client can be held to.

``python -m tests.helpers.make_vectors`` writes the file. Every expected result is
spelled out here, not computed by a codec: neither the extension's nor the
oracle's. ``tests/codec/vectors/README.md`` explains the format.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from iproto.wire import SLOT_BYTES, SLOT_COUNT, ReturnCode
from tests.helpers.oracle import request, response
from tests.helpers.paths import ROOT
from tests.helpers.vector_bodies import CONTENTS
from tests.helpers.vector_case import (
    MAINTENANCE,
    MAX_BODY,
    PING,
    READ,
    READONLY,
    READWRITE,
    REPLACE,
    SHUTDOWN,
)
from tests.helpers.vector_cases import cases
from tests.helpers.vector_forms import NIL, short_str

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = ROOT / "tests" / "codec" / "vectors" / "vectors.json"

ERROR_TEXTS = ("try again later", "индекс 1000 вне 0..999", "x" * 31, "y" * 32, "z" * 300)

OTHER_CODES = (0x0001, 0x5102, 0x80000002, 0xFFFFFFFF)
"""Codes of user functions, which a client must hand on as they are."""


def client_replies(dialect: str) -> Iterator[dict[str, Any]]:
    """All replies for a client; each is to the request with request_id 1."""
    mailru = dialect == "mailru"

    def reply(name: str, func_id: int, code: int, packed: bytes, **meaning: Any) -> dict[str, Any]:
        data = response(func_id, 1, code, packed, mailru=mailru).hex()
        return {"name": name, "dialect": dialect, "func_id": func_id, "reply": data, **meaning}

    for name, content in CONTENTS.items():
        yield reply(f"STORAGE_READ: {name}", READ, 0, short_str(content), str=content.hex())
    for func_id in (REPLACE, READONLY, READWRITE, MAINTENANCE):
        yield reply(f"{func_id.name} done", func_id, 0, NIL, nil=True)
    for name, body in {"nil": "c0", "int": "01", "str": "a3616263", "array": "93010203"}.items():
        yield reply(f"a user's function: {name}", 0x00030001, 0, bytes.fromhex(body), body=body)
    for func_id in (PING, SHUTDOWN):
        yield {
            "name": f"{func_id.name} done",
            "dialect": dialect,
            "func_id": func_id,
            "reply": request(func_id, b"", 1).hex(),
            "bare": True,
        }
    codes = {int(code): code.name for code in ReturnCode if code != ReturnCode.OK}
    codes |= {code: f"{code:#x}" for code in OTHER_CODES}
    for code, code_name in codes.items():
        for any_id in (READ, REPLACE, READONLY, PING, 0x00030001):
            for text in ERROR_TEXTS if code == ReturnCode.ILLEGAL_PARAMS else ERROR_TEXTS[:1]:
                packed = short_str(text.encode())
                error = {"return_code": code, "text": text}
                name = f"{code_name} of {int(any_id):#010x}, {len(text)} characters"
                yield reply(name, any_id, code, packed, error=error)


def render() -> str:
    """The file's text."""
    dialects = ("vk", "mailru")
    vectors = {
        "format": 1,
        "limits": {"max_body": MAX_BODY, "slots": SLOT_COUNT, "slot_bytes": SLOT_BYTES},
        "cases": [case.json for dialect in dialects for case in cases(dialect)],
        "replies": [reply for dialect in dialects for reply in client_replies(dialect)],
    }
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
