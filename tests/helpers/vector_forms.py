"""MsgPack in every form that the vectors use, spelled out."""

from __future__ import annotations

import struct

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
