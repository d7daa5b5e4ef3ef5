"""Results of user functions, and arguments that clients give, as MsgPack.

msgspec encodes what an annotation says is made of its own types alone; all else
goes through msgpack, which asks ``to_plain`` for what MsgPack has no type for.
Dataclasses are of the second kind: msgspec would leave out the fields whose value
is the class's default.
"""

from __future__ import annotations

import dataclasses
import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgpack
import msgspec
import msgspec.inspect as mi

if TYPE_CHECKING:
    from collections.abc import Callable

# What MsgPack carries by itself; msgspec would otherwise want these as str.
_BUILTIN_TYPES = (bytes, bytearray, memoryview, datetime.datetime)

# Builtin types, and what makes one of a subclass, whatever that overrides.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
)

_SCALARS = (
    mi.NoneType,
    mi.BoolType,
    mi.IntType,
    mi.FloatType,
    mi.StrType,
    mi.BytesType,
    mi.ByteArrayType,
    mi.UUIDType,
    mi.DecimalType,
    mi.DateType,
    mi.EnumType,
    mi.LiteralType,
)
_CONTAINERS = (mi.CollectionType, mi.TupleType, mi.DictType, mi.UnionType, mi.StructType)


def pack(value: Any) -> bytes:
    """One MsgPack object.

    Raises:
        TypeError, ValueError, OverflowError: MsgPack cannot carry the value.
    """
    return cast("bytes", msgpack.packb(value, datetime=True, default=to_plain))


def encoder_for(annotation: Any) -> Callable[[Any], bytes]:
    """What encodes the results of a function that returns this; Any if it has no annotation."""
    try:
        info = mi.type_info(annotation)
    except (TypeError, RuntimeError, NotImplementedError):
        return pack  # results are not checked: what is returned counts
    if isinstance(info, _CONTAINERS) and _is_closed(info):
        return msgspec.msgpack.Encoder(enc_hook=_to_base).encode
    return pack


def _is_closed(info: mi.Type, within: frozenset[type] = frozenset()) -> bool:
    """Whether msgspec encodes such a result as documented, whatever is in it."""
    if isinstance(info, mi.StructType):
        inner = within | {info.cls}
        return info.cls in within or all(_is_closed(field.type, inner) for field in info.fields)
    if isinstance(info, mi.Metadata):
        return _is_closed(info.type, within)
    if isinstance(info, mi.UnionType):
        return all(_is_closed(item, within) for item in info.types)
    if isinstance(info, mi.TupleType):
        return all(_is_closed(item, within) for item in info.item_types)
    if isinstance(info, mi.DictType):
        return _is_closed(info.key_type, within) and _is_closed(info.value_type, within)
    if isinstance(info, mi.CollectionType):
        return _is_closed(info.item_type, within)
    return isinstance(info, _SCALARS)


def _to_base(value: Any) -> Any:
    """Of subclasses of the builtin types, which msgspec does not take, the value."""
    for base, plain in _BASES:
        if isinstance(value, base):
            return plain(value)
    raise TypeError(f"a result of type {type(value).__name__} has no form in MsgPack")


def to_plain(value: Any) -> Any:
    """One level of what MsgPack has no type for: msgpack asks again for what is in it."""
    cls: Any = type(value)
    names = _attributes(cls)
    if names is not None:
        return {name: item for name, item in _items(value, names) if item is not msgspec.UNSET}
    if isinstance(value, msgspec.Struct):
        return _structto_plain(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return msgspec.to_builtins(value, builtin_types=_BUILTIN_TYPES)


@lru_cache(maxsize=1024)
def _attributes(cls: Any) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass or an attrs class; None for other classes."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    attributes = getattr(cls, "__attrs_attrs__", None)
    return None if attributes is None else tuple(item.name for item in attributes)


def _items(value: Any, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, getattr(value, name, msgspec.UNSET)) for name in names]


def _structto_plain(value: msgspec.Struct) -> Any:
    """msgspec says which fields a Struct shows under which names; the values are as they are."""
    shown = msgspec.to_builtins(value, builtin_types=_BUILTIN_TYPES)
    items = [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(shown, list):
        return shown[: len(shown) - len(items)] + items
    raw = dict(zip(value.__struct_encode_fields__, items, strict=True))
    return {name: raw.get(name, item) for name, item in shown.items()}
