"""gob, as much of it as Go's net/rpc sends: written and read by plain Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX = range(1, 8)
FIRST_OWN = 64

ARRAY_T, SLICE_T, STRUCT_T, MAP_T = range(4)
"""Fields of wireType: which kind of type a definition defines."""


class GobError(Exception):
    """The bytes are not what a sender of gob writes."""


class CutShort(GobError):
    """A value runs beyond the end of what there is."""


# Writing.


def uint(number: int) -> bytes:
    """An unsigned integer."""
    if number < 0x80:
        return bytes([number])
    packed = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([256 - len(packed)]) + packed


def signed(number: int) -> bytes:
    """A signed integer."""
    return uint(~number << 1 | 1 if number < 0 else number << 1)


def text(content: bytes) -> bytes:
    """A string, or bytes."""
    return uint(len(content)) + content


def message(payload: bytes) -> bytes:
    """A message, with its length before it."""
    return uint(len(payload)) + payload


def struct(fields: Mapping[int, bytes]) -> bytes:
    """A struct's value: by number of the field its bytes; zero values are left out."""
    packed = b""
    last = -1
    for number in sorted(fields):
        packed += uint(number - last) + fields[number]
        last = number
    return packed + b"\0"


def struct_type(type_id: int, fields: Iterable[tuple[bytes, int]], name: bytes = b"") -> bytes:
    """The message that defines a struct: its fields' names and types."""
    packed = [struct({0: text(field), 1: signed(of)}) for field, of in fields]
    common = struct({0: text(name), 1: signed(type_id)} if name else {1: signed(type_id)})
    inner: dict[int, bytes] = {0: common}
    if packed:
        inner[1] = uint(len(packed)) + b"".join(packed)
    return message(signed(-type_id) + struct({STRUCT_T: struct(inner)}))


def value(type_id: int, fields: Mapping[int, bytes]) -> bytes:
    """The message of a struct's value."""
    return message(signed(type_id) + struct(fields))


CALL_TYPE, ARGUMENT_TYPE, HEADER_TYPE = 65, 66, 67

DEFINE_CALL = struct_type(CALL_TYPE, [(b"ServiceMethod", STRING), (b"Seq", UINT)], b"Request")
DEFINE_ARGUMENT = struct_type(
    ARGUMENT_TYPE, [(b"Header", HEADER_TYPE), (b"Body", BYTES)], b"Request"
) + struct_type(
    HEADER_TYPE, [(b"FuncID", UINT), (b"BodyLength", UINT), (b"RequestID", UINT)], b"Header"
)
DEFINITIONS = DEFINE_CALL + DEFINE_ARGUMENT
"""What a client of Go sends before and in its first call, with the numbers that Go gives."""

METHOD = b"MyService.MainHandler"


def _without_zeros(fields: Mapping[int, int]) -> dict[int, bytes]:
    return {number: uint(content) for number, content in fields.items() if content}


def begin_call(seq: int, method: bytes = METHOD) -> bytes:
    """The message with which a call begins."""
    return value(CALL_TYPE, {0: text(method)} | _without_zeros({1: seq}))


def argument(func_id: int, body: bytes, request_id: int = 0) -> bytes:
    """The message with a call's argument."""
    header = struct(_without_zeros({0: func_id, 1: len(body), 2: request_id}))
    return value(ARGUMENT_TYPE, {0: header, 1: text(body)} if body else {0: header})


def call(seq: int, func_id: int, body: bytes, request_id: int = 0) -> bytes:
    """A call of the method, without definitions."""
    return begin_call(seq) + argument(func_id, body, request_id)


# Reading.


class Reader:
    """The values in some bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CutShort
        self.at += size
        return self.data[self.at - size : self.at]

    def uint(self) -> int:
        first = self.take(1)[0]
        if first < 0x80:
            return first
        if 256 - first > 8:
            raise GobError(f"a number of {256 - first} bytes")
        return int.from_bytes(self.take(256 - first), "big")

    def signed(self) -> int:
        number = self.uint()
        return ~(number >> 1) if number & 1 else number >> 1

    def text(self) -> bytes:
        return self.take(self.uint())

    def fields(self, count: int) -> Iterable[int]:
        """Numbers of the fields that are there; read each one's value before the next number."""
        number = -1
        while delta := self.uint():
            number += delta
            if number >= count:
                raise GobError(f"field {number} of {count}")
            yield number


class Field(NamedTuple):
    """A field of a struct, as it was defined."""

    name: bytes
    type: int


class Types:
    """The types that one side of a connection has defined; None for those that are no structs."""

    def __init__(self) -> None:
        self.known: dict[int, list[Field] | None] = {}

    def define(self, type_id: int, reader: Reader) -> None:
        """Reads a definition."""
        if type_id in self.known:
            raise GobError("defined twice")
        fields: list[Field] | None = None
        kind = next(iter(reader.fields(7)), None)
        if kind is None:
            raise GobError("an empty definition")
        if kind == STRUCT_T:
            fields = []
            for part in reader.fields(2):
                if part == 0:
                    self._skip_common(reader)
                else:
                    fields = [self._field(reader) for _ in range(reader.uint())]
            if reader.data[reader.at :] != b"\0":
                raise GobError("more than a definition")
        self.known[type_id] = fields

    @staticmethod
    def _skip_common(reader: Reader) -> None:
        for part in reader.fields(2):
            reader.text() if part == 0 else reader.signed()

    @staticmethod
    def _field(reader: Reader) -> Field:
        name, type_id = b"", 0
        for part in reader.fields(2):
            if part == 0:
                name = reader.text()
            else:
                type_id = reader.signed()
        if not 0 < type_id < 2**31:
            raise GobError(f"type {type_id}")
        return Field(name, type_id)

    def read(self, type_id: int, reader: Reader, depth: int = 1) -> Any:
        """A value: an int, bytes, a pair of ints for a complex, or a dict for a struct.

        A struct's dict has the type's number with each value: ``name → (type, value)``.
        """
        if type_id in (BOOL, INT, UINT, FLOAT):
            return reader.uint()
        if type_id in (BYTES, STRING):
            return reader.text()
        if type_id == COMPLEX:
            return reader.uint(), reader.uint()
        fields = self.known.get(type_id)
        if fields is None or depth > 8:
            raise GobError(f"a value of type {type_id}, {depth} deep")
        found: dict[bytes, tuple[int, Any]] = {}
        for number in reader.fields(len(fields)):
            field = fields[number]
            found[field.name] = (field.type, self.read(field.type, reader, depth + 1))
        return found
