"""A connection of the vectors: what is sent over it, and what answers that."""

from __future__ import annotations

from typing import Any

from iproto.wire import FuncID, ReturnCode
from tests.helpers.oracle import HEADER, request, response
from tests.helpers.vector_forms import NIL, short_int, short_str

MAX_BODY = 1 << 20

READONLY = FuncID.ADM_STORAGE_SWITCH_READONLY
READWRITE = FuncID.ADM_STORAGE_SWITCH_READWRITE
MAINTENANCE = FuncID.ADM_STORAGE_SWITCH_MAINTENANCE
REPLACE = FuncID.STORAGE_REPLACE
READ = FuncID.STORAGE_READ
PING = FuncID.PING
SHUTDOWN = FuncID.SHUTDOWN


class Case:
    """A connection to a server with fresh storage, and what goes over it."""

    def __init__(self, name: str, dialect: str) -> None:
        self.name = name
        self.mailru = dialect == "mailru"
        self.steps: list[dict[str, Any]] = []
        self.json = {"name": name, "dialect": dialect, "steps": self.steps}

    def _id(self) -> int:
        return 100 + len(self.steps)

    def _ok(self, func_id: int, body: bytes, result: bytes, request_id: int | None) -> None:
        request_id = self._id() if request_id is None else request_id
        reply = response(func_id, request_id, 0, result, mailru=self.mailru)
        self.exact(request(func_id, body, request_id), reply)

    def exact(self, sent: bytes, reply: bytes, *, closes: bool = False) -> None:
        """These bytes are answered by those."""
        step: dict[str, Any] = {"request": sent.hex(), "reply": reply.hex()}
        if closes:
            step["closes"] = True
        self.steps.append(step)

    def read(self, index: int, content: bytes, *, body: bytes | None = None) -> None:
        """STORAGE_READ gives this content."""
        self._ok(READ, short_int(index) if body is None else body, short_str(content), None)

    def write(self, index: int, content: bytes, *, body: bytes | None = None) -> None:
        """STORAGE_REPLACE succeeds."""
        plain = short_int(index) + short_str(content)
        self._ok(REPLACE, plain if body is None else body, NIL, None)

    def switch(self, func_id: int, body: bytes = NIL, request_id: int | None = None) -> None:
        """A switch succeeds."""
        self._ok(func_id, body, NIL, request_id)

    def ping(self, request_id: int | None = None) -> None:
        """PING comes back."""
        header = HEADER.pack(PING, 0, self._id() if request_id is None else request_id)
        self.exact(header, header)

    def error(self, sent: bytes, code: ReturnCode, *, closes: bool = False) -> None:
        """These bytes, one request or its header, get an error reply."""
        func_id, _, request_id = HEADER.unpack_from(sent)
        expected = {"func_id": func_id, "request_id": request_id, "return_code": int(code)}
        step: dict[str, Any] = {"request": sent.hex(), "error": expected}
        if closes:
            step["closes"] = True
        self.steps.append(step)

    def refused(self, func_id: int, body: bytes, code: ReturnCode) -> None:
        """A request gets an error reply."""
        self.error(request(func_id, body, self._id()), code)

    def illegal(self, func_id: int, body: bytes) -> None:
        self.refused(func_id, body, ReturnCode.ILLEGAL_PARAMS)


def protected(name: str, dialect: str) -> Case:
    """A case in which slots 0 and 1 must stay as they are."""
    c = Case(name, dialect)
    c.write(0, b"zero")
    c.write(1, b"one")
    return c
