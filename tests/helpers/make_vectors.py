"""Makes ``tests/codec/vectors/vectors.json``: exchanges that any server or client can be held to.

``python -m tests.helpers.make_vectors`` writes the file. Every expected result is
spelled out here, not computed by a codec: neither the extension's nor the
oracle's. ``tests/codec/vectors/README.md`` explains the format.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from iproto.wire import SLOT_BYTES, SLOT_COUNT, FuncID, ReturnCode
from tests.helpers.oracle import HEADER, request, response
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = ROOT / "tests" / "codec" / "vectors" / "vectors.json"

MAX_BODY = 1 << 20

READONLY = FuncID.ADM_STORAGE_SWITCH_READONLY
READWRITE = FuncID.ADM_STORAGE_SWITCH_READWRITE
MAINTENANCE = FuncID.ADM_STORAGE_SWITCH_MAINTENANCE
REPLACE = FuncID.STORAGE_REPLACE
READ = FuncID.STORAGE_READ
PING = FuncID.PING
SHUTDOWN = FuncID.SHUTDOWN

NIL = b"\xc0"

INT_FORMATS = {
    "uint8": (0xCC, ">B"),
    "uint16": (0xCD, ">H"),
    "uint32": (0xCE, ">I"),
    "uint64": (0xCF, ">Q"),
    "int8": (0xD0, ">b"),
    "int16": (0xD1, ">h"),
    "int32": (0xD2, ">i"),
    "int64": (0xD3, ">q"),
}
STR_FORMATS = {"str8": (0xD9, ">B"), "str16": (0xDA, ">H"), "str32": (0xDB, ">I")}
BIN_FORMATS = {"bin8": (0xC4, ">B"), "bin16": (0xC5, ">H"), "bin32": (0xC6, ">I")}


def packed_int(value: int, form: str) -> bytes:
    """An integer in a form of that name, which need not be the shortest."""
    if form == "fixint":
        return struct.pack(">b", value)
    head, layout = INT_FORMATS[form]
    return bytes([head]) + struct.pack(layout, value)


def packed_str(content: bytes, form: str) -> bytes:
    """A str or bin in a form of that name, which need not be the shortest."""
    if form == "fixstr":
        assert len(content) < 32
        return bytes([0xA0 | len(content)]) + content
    head, layout = (STR_FORMATS | BIN_FORMATS)[form]
    return bytes([head]) + struct.pack(layout, len(content)) + content


def short_int(value: int) -> bytes:
    """An index in its shortest form."""
    return packed_int(value, "fixint" if value < 0x80 else "uint8" if value < 0x100 else "uint16")


def short_str(content: bytes) -> bytes:
    """A str in its shortest form."""
    size = len(content)
    return packed_str(content, "fixstr" if size < 32 else "str8" if size < 256 else "str16")


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


BAD_INDEXES = {
    "nil": "c0",
    "false": "c2",
    "true": "c3",
    "the never used byte": "c1",
    "float32": "ca3f800000",
    "float64": "cb3ff0000000000000",
    "str": "a131",
    "bin": "c40101",
    "fixext1": "d40101",
    "ext8": "c7010101",
    "timestamp": "d6ff00000001",
    "array": "9101",
    "map": "810101",
}

BAD_CONTENTS = {
    "nil": "c0",
    "true": "c3",
    "int": "01",
    "float64": "cb3ff0000000000000",
    "bin8": "c403616263",
    "bin16": "c50003616263",
    "bin32": "c600000003616263",
    "empty bin8": "c400",
    "fixext1": "d40161",
    "ext8": "c7010161",
    "array": "91a3616263",
    "map": "80",
}

BAD_READS = {
    "empty body": "",
    "trailing int": "0101",
    "trailing nil": "01c0",
    "trailing byte after uint8": "cc0100",
    "uint8 without its byte": "cc",
    "uint16 cut": "cd00",
    "uint32 cut": "ce000000",
    "uint64 cut": "cf00000000000000",
    "int8 without its byte": "d0",
    "int16 cut": "d100",
    "int32 cut": "d2000000",
    "int64 cut": "d300000000000000",
    "str after the int": "01a3616263",
    "array of none": "90",
    "array of two ints": "920101",
    "array of int and str": "9201a3616263",
    "array of one, none there": "91",
    "array of one, two there": "910101",
    "array within an array": "919101",
    "array16 head cut": "dc00",
    "array32 of 2^32-1": "ddffffffff01",
    "map of none": "80",
    "map of one, none there": "81",
    "map with a key and no value": "81a24944",
    "map with a lower-case key": "81a2696401",
    "map with an unknown key": "81a15301",
    "map with an empty key": "81a001",
    "map with a longer key": "81a349447301",
    "map with a shorter key": "81a14901",
    "map with an int key": "810101",
    "map with a bin key": "81c402494401",
    "map with lower-case Idx": "81a369647801",
    "map with Str": "81a353747201",
    "map with ID and Idx": "82a2494401a349647801",
    "map with ID twice": "82a2494401a2494401",
    "map with ID and S": "82a2494401a153a3616263",
    "map with ID and an unknown key": "82a2494401a15801",
    "map16 head cut": "de00",
    "map32 of 2^32-1": "dfffffffffa2494401",
    "trailing byte after the array": "910100",
    "trailing byte after the map": "81a249440100",
    "two maps": "81a249440181a2494401",
}

BAD_REPLACES = {
    "empty body": "",
    "int alone": "01",
    "str alone": "a3616263",
    "str before int": "a361626301",
    "two ints": "0101",
    "two strs": "a161a162",
    "trailing nil": "01a3616263c0",
    "second str": "01a3616263a3616263",
    "trailing byte": "01a361626300",
    "str shorter than its head says": "01a36162",
    "fixstr without its bytes": "01a3",
    "str8 without its length": "01d9",
    "str8 shorter than its head says": "01d9036162",
    "str16 with half a length": "01da00",
    "str16 shorter than its head says": "01da00036162",
    "str32 with part of a length": "01db000000",
    "str32 shorter than its head says": "01db000000036162",
    "str32 of 2^32-1 bytes": "01dbffffffff616263",
    "array of none": "90",
    "array of one": "9101",
    "array of three": "9301a3616263c0",
    "array of two, one there": "9201",
    "array of two, three there": "9201a3616263c0",
    "array with str first": "92a361626301",
    "array within an array": "919201a3616263",
    "array of int, then str": "9101a3616263",
    "array16 head cut": "dc00",
    "array32 of 2^32-1": "ddffffffff01a3616263",
    "map of none": "80",
    "map with ID alone": "81a2494401",
    "map with S alone": "81a153a3616263",
    "map with ID twice": "82a2494401a2494401",
    "map with S twice": "82a153a3616263a153a3616263",
    "map with ID and Str": "82a2494401a3537472a3616263",
    "map with Idx and S": "82a349647801a153a3616263",
    "map with ID and Idx": "82a2494401a349647801",
    "map with S and Str": "82a153a3616263a3537472a3616263",
    "map with Idx twice": "82a349647801a349647801",
    "map with Str twice": "82a3537472a3616263a3537472a3616263",
    "map with Idx alone": "81a349647801",
    "map with all four keys": "84a2494401a153a3616263a349647801a3537472a3616263",
    "map with values of Idx and Str swapped": "82a3496478a3616263a353747201",
    "map with ID twice and S": "83a2494401a2494402a153a3616263",
    "map with ID and S twice": "83a2494401a153a3616263a153a3616263",
    "map with an unknown key too": "83a2494401a153a3616263a15801",
    "map with an unknown key for S": "82a2494401a156a3616263",
    "map with unknown keys": "82a15801a159a3616263",
    "map with lower-case keys": "82a2696401a173a3616263",
    "map with bin keys": "82c402494401c40153a3616263",
    "map with int keys": "82000101a3616263",
    "map with values swapped": "82a24944a3616263a15301",
    "map of two, one there": "82a2494401",
    "map of two, the last value missing": "82a2494401a153",
    "map16 head cut": "de00",
    "map32 of 2^32-1": "dfffffffffa2494401a153a3616263",
    "trailing byte after the map": "82a2494401a153a361626300",
}

BAD_SWITCHES = {
    "int": "00",
    "false": "c2",
    "empty str": "a0",
    "empty array": "90",
    "nil in an array": "91c0",
    "empty map": "80",
    "two nils": "c0c0",
    "trailing byte": "c000",
    "the never used byte": "c1",
}

OUT_OF_RANGE = {
    "-1 as fixint": packed_int(-1, "fixint"),
    "-32 as fixint": packed_int(-32, "fixint"),
    "-1 as int8": packed_int(-1, "int8"),
    "-128 as int8": packed_int(-128, "int8"),
    "-1 as int16": packed_int(-1, "int16"),
    "-2^15 as int16": packed_int(-(2**15), "int16"),
    "-1 as int32": packed_int(-1, "int32"),
    "-2^31 as int32": packed_int(-(2**31), "int32"),
    "-1 as int64": packed_int(-1, "int64"),
    "-2^63 as int64": packed_int(-(2**63), "int64"),
    "1-2^32 as int64": packed_int(1 - 2**32, "int64"),
    "1000 as uint16": packed_int(1000, "uint16"),
    "1000 as uint32": packed_int(1000, "uint32"),
    "1000 as uint64": packed_int(1000, "uint64"),
    "1000 as int16": packed_int(1000, "int16"),
    "1000 as int32": packed_int(1000, "int32"),
    "1000 as int64": packed_int(1000, "int64"),
    "2^15-1 as int16": packed_int(2**15 - 1, "int16"),
    "2^16-1 as uint16": packed_int(2**16 - 1, "uint16"),
    "2^16+1 as uint32": packed_int(2**16 + 1, "uint32"),
    "2^31 as uint32": packed_int(2**31, "uint32"),
    "2^32-1 as uint32": packed_int(2**32 - 1, "uint32"),
    "2^32 as uint64": packed_int(2**32, "uint64"),
    "2^32+1 as uint64": packed_int(2**32 + 1, "uint64"),
    "2^32+1 as int64": packed_int(2**32 + 1, "int64"),
    "2^63-1 as int64": packed_int(2**63 - 1, "int64"),
    "2^63 as uint64": packed_int(2**63, "uint64"),
    "2^63+1 as uint64": packed_int(2**63 + 1, "uint64"),
    "2^64-1 as uint64": packed_int(2**64 - 1, "uint64"),
}

READ_SHAPES = {
    "int": "01",
    "array": "9101",
    "array16": "dc000101",
    "array32": "dd0000000101",
    "map": "81a2494401",
    "map16": "de0001a2494401",
    "map32": "df00000001a2494401",
    "map with Idx": "81a349647801",
    "map with Idx as str8": "81d90349647801",
    "map with a str8 key": "81d902494401",
    "map with a str16 key": "81da0002494401",
    "map with a str32 key": "81db00000002494401",
    "array with a wide int": "91cf0000000000000001",
    "map with a wide int": "81a24944cf0000000000000001",
}

REPLACE_SHAPES = {
    "int, str": "01a3616263",
    "array": "9201a3616263",
    "array16": "dc000201a3616263",
    "array32": "dd0000000201a3616263",
    "map": "82a2494401a153a3616263",
    "map, S first": "82a153a3616263a2494401",
    "map with Idx and Str": "82a349647801a3537472a3616263",
    "map with Str and Idx": "82a3537472a3616263a349647801",
    "map32 with Idx and Str": "df00000002a349647801a3537472a3616263",
    "map16": "de0002a2494401a153a3616263",
    "map32": "df00000002a2494401a153a3616263",
    "map32, S first": "df00000002a153a3616263a2494401",
    "map with str8 keys": "82d902494401d90153a3616263",
    "map with str16 keys": "82da0002494401da000153a3616263",
    "map with str32 keys": "82db00000002494401db0000000153a3616263",
    "array with wide members": "92cf0000000000000001db00000003616263",
    "map with wide members": "82a24944d30000000000000001a153db00000003616263",
}

CONTENTS = {
    "nothing": b"",
    "one byte": b"a",
    "31 bytes": b"b" * 31,
    "32 bytes": b"c" * 32,
    "255 bytes": b"d" * 255,
    "256 bytes": b"e" * SLOT_BYTES,
    "one NUL": b"\x00",
    "256 NULs": b"\x00" * SLOT_BYTES,
    "every byte value": bytes(range(256)),
    "not UTF-8: ff fe": b"\xff\xfe",
    "not UTF-8: a cut character": "Ж".encode()[:1],
    "not UTF-8: a surrogate": b"\xed\xa0\x80",
    "not UTF-8: an overlong slash": b"\xc0\xaf",
    "UTF-8": "Привет, мир 🙂".encode(),
    "256 bytes that are 128 characters": "ж".encode() * 128,
    "256 bytes that are 64 characters": "🙂".encode() * 64,
    "what looks like MsgPack": bytes.fromhex("92c0c0"),
    "what looks like a frame": HEADER.pack(READ, 1, 1) + b"\x01",
}

TOO_LONG = {
    "257 bytes": b"f" * (SLOT_BYTES + 1),
    "258 bytes that are 129 characters": "ж".encode() * 129,
    "1000 bytes": b"g" * 1000,
}

UNKNOWN_FUNCTIONS = [
    0x00000000,
    0x00000001,
    0x00010000,
    0x00010004,
    0x00020000,
    0x00020003,
    0x0000FEFF,
    0x0000FF02,
    0x00030001,
    0x01000100,  # 0x00010001 with its bytes turned round
    0x02000200,
    0x80020002,
    0xFFFFFFFF,
]


def cases(dialect: str) -> Iterator[Case]:
    """All exchanges of a server."""

    def case(name: str) -> Case:
        return Case(name, dialect)

    def protected(name: str) -> Case:
        """A case in which slots 0 and 1 must stay as they are."""
        c = case(name)
        c.write(0, b"zero")
        c.write(1, b"one")
        return c

    c = case("slots are empty at first")
    for index in (0, 1, 500, 998, 999):
        c.read(index, b"")
    yield c

    c = case("slots are apart")
    for index in (0, 1, 127, 128, 255, 256, 998, 999):
        c.write(index, b"slot %d" % index)
    for index in (0, 1, 127, 128, 255, 256, 998, 999):
        c.read(index, b"slot %d" % index)
    c.read(2, b"")
    c.read(997, b"")
    yield c

    c = case("a slot is overwritten whole")
    for content in (b"x" * 256, b"short", b"y" * 100, b"", b"z"):
        c.write(42, content)
        c.read(42, content)
    yield c

    for form in ("fixint", *INT_FORMATS):
        c = case(f"index as {form}")
        top = 127 if form in ("fixint", "int8") else 255 if form == "uint8" else 999
        for index in (0, 1, 127, top):
            content = b"%d" % index
            packed = packed_int(index, form)
            c.write(index, content, body=packed + short_str(content))
            c.read(index, content, body=packed)
            c.read(index, content)
        yield c

    for name, content in CONTENTS.items():
        c = case(f"content: {name}")
        for form in ("fixstr", *STR_FORMATS):
            if (form != "fixstr" or len(content) < 32) and (form != "str8" or len(content) < 256):
                c.write(3, b"before")
                c.write(3, content, body=b"\x03" + packed_str(content, form))
                c.read(3, content)
        yield c

    for name, content in TOO_LONG.items():
        c = protected(f"content too long: {name}")
        for form in STR_FORMATS:
            if form != "str8" or len(content) < 256:
                packed = packed_str(content, form)
                c.illegal(REPLACE, b"\x01" + packed)
                c.illegal(REPLACE, b"\x92\x01" + packed)
                c.illegal(REPLACE, b"\x82\xa2ID\x01\xa1S" + packed)
        c.read(1, b"one")
        yield c

    c = case("shapes of STORAGE_READ")
    c.write(1, b"found")
    for shape in READ_SHAPES.values():
        c.read(1, b"found", body=bytes.fromhex(shape))
    yield c

    for name, shape in REPLACE_SHAPES.items():
        c = case(f"shape of STORAGE_REPLACE: {name}")
        c.write(1, b"abc", body=bytes.fromhex(shape))
        c.read(1, b"abc")
        yield c

    for name, packed in OUT_OF_RANGE.items():
        c = protected(f"index out of range: {name}")
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
        c = protected(f"index of a wrong type: {name}")
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
        c = protected(f"content of a wrong type: {name}")
        packed = bytes.fromhex(bad)
        c.illegal(REPLACE, b"\x01" + packed)
        c.illegal(REPLACE, b"\x92\x01" + packed)
        c.illegal(REPLACE, b"\x82\xa2ID\x01\xa1S" + packed)
        c.read(1, b"one")
        yield c

    for name, bad in BAD_READS.items():
        c = case(f"STORAGE_READ refuses: {name}")
        c.illegal(READ, bytes.fromhex(bad))
        c.read(1, b"")
        yield c

    for name, bad in BAD_REPLACES.items():
        c = protected(f"STORAGE_REPLACE refuses: {name}")
        c.illegal(REPLACE, bytes.fromhex(bad))
        c.read(0, b"zero")
        c.read(1, b"one")
        yield c

    for name, bad in BAD_SWITCHES.items():
        c = protected(f"switches refuse: {name}")
        for func_id in (READONLY, READWRITE, MAINTENANCE):
            c.illegal(func_id, bytes.fromhex(bad))
        c.read(1, b"one")
        c.write(1, b"still written")
        yield c

    c = case("READ_ONLY reads and does not write")
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

    c = case("MAINTENANCE neither reads nor writes")
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

    c = case("every state can be left for every state")
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
        c = case(f"{func_id.name} takes nil or an empty body")
        c.switch(func_id, NIL)
        c.switch(func_id, b"")
        yield c

    c = case("a refused switch leaves the state")
    c.switch(READONLY)
    c.illegal(READWRITE, b"\x01")
    c.refused(REPLACE, b"\x01\xa4lost", ReturnCode.READ_ONLY)
    c.switch(MAINTENANCE)
    c.illegal(READWRITE, b"\xc0\xc0")
    c.refused(READ, b"\x01", ReturnCode.LOCKED)
    yield c

    c = case("the state is told before the index is looked at")
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

    c = case("request_id comes back, whatever it is")
    for request_id in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x04030201, 7, 7, 7, 0, 0):
        c.switch(READWRITE, request_id=request_id)
        c.ping(request_id)
        c.error(request(READ, b"\xc0", request_id), ReturnCode.ILLEGAL_PARAMS)
    yield c

    c = case("PING gives its header back, in every state")
    for func_id in (READONLY, MAINTENANCE, READWRITE):
        c.ping()
        c.switch(func_id)
    c.ping()
    yield c

    c = case("PING refuses a body")
    for body in (NIL, b"\x00", b"\x90", b"ping"):
        c.illegal(PING, body)
    c.ping()
    yield c

    c = case("SHUTDOWN gives its header back and closes")
    header = HEADER.pack(SHUTDOWN, 0, 0xFFFFFFFE)
    c.exact(header, header, closes=True)
    yield c

    c = case("SHUTDOWN works in MAINTENANCE")
    c.switch(MAINTENANCE)
    c.exact(header, header, closes=True)
    yield c

    c = case("SHUTDOWN refuses a body and stays open")
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
    c = case("SHUTDOWN answers what came before it and nothing after it")
    dropped = request(PING, b"", 5) + request(REPLACE, b"\x05\xa4lost", 6)
    c.exact(
        b"".join(sent for sent, _ in replies) + dropped,
        b"".join(reply for _, reply in replies),
        closes=True,
    )
    yield c

    c = case("replies of a pipeline keep the order of the requests")
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
        c = case(f"no function {other:#010x}")
        for body in (b"", NIL, b"\x01\xa3abc", b"\xc1 not MsgPack"):
            c.refused(other, body, ReturnCode.UNSUPPORTED_COMMAND)
        c.ping()
        yield c

    for any_id in (READ, REPLACE, READONLY, PING, SHUTDOWN, 0x00030001):
        c = case(f"oversize body of function {int(any_id):#010x}")
        c.ping()
        header = HEADER.pack(any_id, MAX_BODY + 1, 77)
        c.error(header, ReturnCode.ILLEGAL_PARAMS, closes=True)
        yield c

    for length in (2 * MAX_BODY, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1):
        c = case(f"oversize body of {length} bytes")
        header = HEADER.pack(READ, length, 0xFFFFFFFF)
        c.error(header, ReturnCode.ILLEGAL_PARAMS, closes=True)
        yield c


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
