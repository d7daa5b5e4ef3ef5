"""The exchanges of the vectors: what goes to a server with fresh storage, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iproto.wire import ReturnCode
from tests.helpers.oracle import HEADER, request, response
from tests.helpers.vector_bodies import (
    BAD_CONTENTS,
    BAD_INDEXES,
    BAD_READS,
    BAD_REPLACES,
    BAD_SWITCHES,
    CONTENTS,
    OUT_OF_RANGE,
    READ_SHAPES,
    REPLACE_SHAPES,
    TOO_LONG,
    UNKNOWN_FUNCTIONS,
)
from tests.helpers.vector_case import (
    MAINTENANCE,
    MAX_BODY,
    PING,
    READ,
    READONLY,
    READWRITE,
    REPLACE,
    SHUTDOWN,
    Case,
    protected,
)
from tests.helpers.vector_forms import (
    INT_FORMATS,
    NIL,
    STR_FORMATS,
    packed_int,
    packed_str,
    short_int,
    short_str,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def accepted_bodies(dialect: str) -> Iterator[Case]:
    """Slots, and every form in which an index and a content may come."""
    c = Case("slots are empty at first", dialect)
    for index in (0, 1, 500, 998, 999):
        c.read(index, b"")
    yield c

    c = Case("slots are apart", dialect)
    for index in (0, 1, 127, 128, 255, 256, 998, 999):
        c.write(index, b"slot %d" % index)
    for index in (0, 1, 127, 128, 255, 256, 998, 999):
        c.read(index, b"slot %d" % index)
    c.read(2, b"")
    c.read(997, b"")
    yield c

    c = Case("a slot is overwritten whole", dialect)
    for content in (b"x" * 256, b"short", b"y" * 100, b"", b"z"):
        c.write(42, content)
        c.read(42, content)
    yield c

    for form in ("fixint", *INT_FORMATS):
        c = Case(f"index as {form}", dialect)
        top = 127 if form in ("fixint", "int8") else 255 if form == "uint8" else 999
        for index in (0, 1, 127, top):
            content = b"%d" % index
            packed = packed_int(index, form)
            c.write(index, content, body=packed + short_str(content))
            c.read(index, content, body=packed)
            c.read(index, content)
        yield c

    for name, content in CONTENTS.items():
        c = Case(f"content: {name}", dialect)
        for form in ("fixstr", *STR_FORMATS):
            if (form != "fixstr" or len(content) < 32) and (form != "str8" or len(content) < 256):
                c.write(3, b"before")
                c.write(3, content, body=b"\x03" + packed_str(content, form))
                c.read(3, content)
        yield c

    for name, content in TOO_LONG.items():
        c = protected(f"content too long: {name}", dialect)
        for form in STR_FORMATS:
            if form != "str8" or len(content) < 256:
                packed = packed_str(content, form)
                c.illegal(REPLACE, b"\x01" + packed)
                c.illegal(REPLACE, b"\x92\x01" + packed)
                c.illegal(REPLACE, b"\x82\xa2ID\x01\xa1S" + packed)
        c.read(1, b"one")
        yield c

    c = Case("shapes of STORAGE_READ", dialect)
    c.write(1, b"found")
    for shape in READ_SHAPES.values():
        c.read(1, b"found", body=bytes.fromhex(shape))
    yield c

    for name, shape in REPLACE_SHAPES.items():
        c = Case(f"shape of STORAGE_REPLACE: {name}", dialect)
        c.write(1, b"abc", body=bytes.fromhex(shape))
        c.read(1, b"abc")
        yield c


def refused_bodies(dialect: str) -> Iterator[Case]:
    """Bodies that are answered with an error, and change nothing."""
    for name, packed in OUT_OF_RANGE.items():
        c = protected(f"index out of range: {name}", dialect)
        for prefix in (b"", b"\x91", b"\x81\xa2ID"):
            c.refused(READ, prefix + packed, ReturnCode.NUMBER_OUT_OF_RANGE)
        text = short_str(b"lost")
        for body in (
            packed + text,
            b"\x92" + packed + text,
            b"\x82\xa2ID" + packed + b"\xa1S" + text,
            b"\x82\xa1S" + text + b"\xa2ID" + packed,
        ):
            c.refused(REPLACE, body, ReturnCode.NUMBER_OUT_OF_RANGE)
        c.read(0, b"zero")
        c.read(1, b"one")
        c.read(999, b"")
        yield c

    for name, bad in BAD_INDEXES.items():
        c = protected(f"index of a wrong type: {name}", dialect)
        packed = bytes.fromhex(bad)
        for prefix in (b"", b"\x91", b"\x81\xa2ID"):
            if prefix or name != "array":  # which, alone, is a shape of its own
                c.illegal(READ, prefix + packed)
        c.illegal(REPLACE, packed + short_str(b"lost"))
        c.illegal(REPLACE, b"\x92" + packed + short_str(b"lost"))
        c.illegal(REPLACE, b"\x82\xa2ID" + packed + b"\xa1S" + short_str(b"lost"))
        c.read(0, b"zero")
        c.read(1, b"one")
        yield c

    for name, bad in BAD_CONTENTS.items():
        c = protected(f"content of a wrong type: {name}", dialect)
        packed = bytes.fromhex(bad)
        c.illegal(REPLACE, b"\x01" + packed)
        c.illegal(REPLACE, b"\x92\x01" + packed)
        c.illegal(REPLACE, b"\x82\xa2ID\x01\xa1S" + packed)
        c.read(1, b"one")
        yield c

    for name, bad in BAD_READS.items():
        c = Case(f"STORAGE_READ refuses: {name}", dialect)
        c.illegal(READ, bytes.fromhex(bad))
        c.read(1, b"")
        yield c

    for name, bad in BAD_REPLACES.items():
        c = protected(f"STORAGE_REPLACE refuses: {name}", dialect)
        c.illegal(REPLACE, bytes.fromhex(bad))
        c.read(0, b"zero")
        c.read(1, b"one")
        yield c

    for name, bad in BAD_SWITCHES.items():
        c = protected(f"switches refuse: {name}", dialect)
        for func_id in (READONLY, READWRITE, MAINTENANCE):
            c.illegal(func_id, bytes.fromhex(bad))
        c.read(1, b"one")
        c.write(1, b"still written")
        yield c


def states(dialect: str) -> Iterator[Case]:
    """What each state allows, and how it is switched."""
    c = Case("READ_ONLY reads and does not write", dialect)
    c.write(1, b"one")
    c.switch(READONLY)
    c.read(1, b"one")
    c.refused(REPLACE, b"\x01\xa4lost", ReturnCode.READ_ONLY)
    c.refused(REPLACE, b"\x92\x01\xa4lost", ReturnCode.READ_ONLY)
    c.refused(REPLACE, b"\x82\xa2ID\x01\xa1S\xa4lost", ReturnCode.READ_ONLY)
    c.read(1, b"one")
    c.switch(READWRITE)
    c.read(1, b"one")
    c.write(1, b"two")
    c.read(1, b"two")
    yield c

    c = Case("MAINTENANCE neither reads nor writes", dialect)
    c.write(1, b"one")
    c.switch(MAINTENANCE)
    for body in (b"\x01", b"\x91\x01", b"\x81\xa2ID\x01"):
        c.refused(READ, body, ReturnCode.LOCKED)
    c.refused(REPLACE, b"\x01\xa4lost", ReturnCode.LOCKED)
    c.refused(REPLACE, b"\x82\xa1S\xa4lost\xa2ID\x01", ReturnCode.LOCKED)
    c.switch(READONLY)
    c.read(1, b"one")
    c.refused(REPLACE, b"\x01\xa4lost", ReturnCode.READ_ONLY)
    c.switch(READWRITE)
    c.read(1, b"one")
    c.write(1, b"two")
    c.read(1, b"two")
    yield c

    c = Case("every state can be left for every state", dialect)
    reads = {
        READONLY: lambda: c.read(5, b"five"),
        READWRITE: lambda: c.write(5, b"five"),
        MAINTENANCE: lambda: c.refused(READ, b"\x05", ReturnCode.LOCKED),
    }
    c.write(5, b"five")
    for start in reads:
        for end in reads:
            c.switch(start)
            c.switch(end, b"")
            reads[end]()
    yield c

    for func_id in (READONLY, READWRITE, MAINTENANCE):
        c = Case(f"{func_id.name} takes nil or an empty body", dialect)
        c.switch(func_id, NIL)
        c.switch(func_id, b"")
        yield c

    c = Case("a refused switch leaves the state", dialect)
    c.switch(READONLY)
    c.illegal(READWRITE, b"\x01")
    c.refused(REPLACE, b"\x01\xa4lost", ReturnCode.READ_ONLY)
    c.switch(MAINTENANCE)
    c.illegal(READWRITE, b"\xc0\xc0")
    c.refused(READ, b"\x01", ReturnCode.LOCKED)
    yield c

    c = Case("the state is told before the index is looked at", dialect)
    c.refused(REPLACE, b"\xff\xa0", ReturnCode.NUMBER_OUT_OF_RANGE)
    c.switch(READONLY)
    c.refused(REPLACE, b"\xff\xa0", ReturnCode.READ_ONLY)
    c.refused(READ, b"\xff", ReturnCode.NUMBER_OUT_OF_RANGE)
    c.illegal(REPLACE, b"\xff\xc0")
    c.switch(MAINTENANCE)
    c.refused(REPLACE, b"\xff\xa0", ReturnCode.LOCKED)
    c.refused(READ, b"\xff", ReturnCode.LOCKED)
    c.illegal(READ, b"\xc0")
    yield c


def frames(dialect: str) -> Iterator[Case]:
    """Ids, PING, SHUTDOWN, pipelines, unknown functions and bodies that are too long."""
    c = Case("request_id comes back, whatever it is", dialect)
    for request_id in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x04030201, 7, 7, 7, 0, 0):
        c.switch(READWRITE, request_id=request_id)
        c.ping(request_id)
        c.error(request(READ, b"\xc0", request_id), ReturnCode.ILLEGAL_PARAMS)
    yield c

    c = Case("PING gives its header back, in every state", dialect)
    for func_id in (READONLY, MAINTENANCE, READWRITE):
        c.ping()
        c.switch(func_id)
    c.ping()
    yield c

    c = Case("PING refuses a body", dialect)
    for body in (NIL, b"\x00", b"\x90", b"ping"):
        c.illegal(PING, body)
    c.ping()
    yield c

    c = Case("SHUTDOWN gives its header back and closes", dialect)
    header = HEADER.pack(SHUTDOWN, 0, 0xFFFFFFFE)
    c.exact(header, header, closes=True)
    yield c

    c = Case("SHUTDOWN works in MAINTENANCE", dialect)
    c.switch(MAINTENANCE)
    c.exact(header, header, closes=True)
    yield c

    c = Case("SHUTDOWN refuses a body and stays open", dialect)
    for body in (NIL, b"\x00", b"\x90"):
        c.illegal(SHUTDOWN, body)
    c.ping()
    yield c

    replies = [
        (request(REPLACE, b"\x05\xa4last", 1), response(REPLACE, 1, 0, NIL, mailru=c.mailru)),
        (request(READ, b"\x05", 2), response(READ, 2, 0, b"\xa4last", mailru=c.mailru)),
        (request(PING, b"", 3), request(PING, b"", 3)),
        (request(SHUTDOWN, b"", 4), request(SHUTDOWN, b"", 4)),
    ]
    c = Case("SHUTDOWN answers what came before it and nothing after it", dialect)
    dropped = request(PING, b"", 5) + request(REPLACE, b"\x05\xa4lost", 6)
    c.exact(
        b"".join(sent for sent, _ in replies) + dropped,
        b"".join(reply for _, reply in replies),
        closes=True,
    )
    yield c

    c = Case("replies of a pipeline keep the order of the requests", dialect)
    sent, expected = [], []
    for i in range(1, 41):
        content = short_str(b"%d" % i)
        sent += [
            request(REPLACE, short_int(i % 4) + content, 3 * i),
            request(READ, short_int(i % 4), 3 * i + 1),
            request(PING, b"", 3 * i + 2),
        ]
        expected += [
            response(REPLACE, 3 * i, 0, NIL, mailru=c.mailru),
            response(READ, 3 * i + 1, 0, content, mailru=c.mailru),
            request(PING, b"", 3 * i + 2),
        ]
    c.exact(b"".join(sent), b"".join(expected))
    yield c

    for other in UNKNOWN_FUNCTIONS:
        c = Case(f"no function {other:#010x}", dialect)
        for body in (b"", NIL, b"\x01\xa3abc", b"\xc1 not MsgPack"):
            c.refused(other, body, ReturnCode.UNSUPPORTED_COMMAND)
        c.ping()
        yield c

    for any_id in (READ, REPLACE, READONLY, PING, SHUTDOWN, 0x00030001):
        c = Case(f"oversize body of function {int(any_id):#010x}", dialect)
        c.ping()
        header = HEADER.pack(any_id, MAX_BODY + 1, 77)
        c.error(header, ReturnCode.ILLEGAL_PARAMS, closes=True)
        yield c

    for length in (2 * MAX_BODY, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1):
        c = Case(f"oversize body of {length} bytes", dialect)
        header = HEADER.pack(READ, length, 0xFFFFFFFF)
        c.error(header, ReturnCode.ILLEGAL_PARAMS, closes=True)
        yield c


def cases(dialect: str) -> Iterator[Case]:
    """All exchanges of a server."""
    yield from accepted_bodies(dialect)
    yield from refused_bodies(dialect)
    yield from states(dialect)
    yield from frames(dialect)
