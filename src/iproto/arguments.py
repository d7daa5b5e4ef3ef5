"""Annotations of a user function as what reads its arguments from MsgPack.

For each number of arguments there is one decoder, made when the function is
registered. It decodes straight into the annotated types.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import msgspec.inspect as mi

from iproto.errors import ConfigError, IllegalParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Which array elements count against the limit of keys; as in bodycheck.h.
COUNT_NONE, COUNT_NUMBERS, COUNT_ALL = range(3)

# Elements of sets, and keys of dicts, that come as text and are hashed as numbers.
_TEXT_TO_NUMBER = (mi.UUIDType, mi.DecimalType, mi.DateTimeType, mi.TimeDeltaType, mi.CustomType)
# Those that hash with a secret, or that are few.
_HASHED_WITH_SECRET = (
    mi.StrType,
    mi.BytesType,
    mi.DateType,
    mi.TimeType,
    mi.EnumType,
    mi.LiteralType,
    mi.BoolType,
    mi.NoneType,
)

# What a decoder raises for a body that does not fit.
_REFUSALS = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


class Arguments:
    """How the arguments of one function are read.

    Args:
        label: the function's name, for error texts.
        names: of its parameters, in order.
        types: their annotations; Any where there is none.
        least: how many of them have no default.
        ignore_unknown_keys: whether maps for dataclasses, TypedDicts and Structs
            may have keys that are no fields.

    Raises:
        ConfigError: arguments cannot be checked against an annotation.
    """

    __slots__ = ("_label", "_names", "counted", "decoders", "least")

    def __init__(
        self,
        label: str,
        names: Sequence[str],
        types: Sequence[Any],
        least: int,
        *,
        ignore_unknown_keys: bool = False,
    ) -> None:
        self._label = label
        self._names = tuple(names)
        self.least = least
        try:
            # Nothing needs the schema: making it looks into every type.
            msgspec.json.schema(_array_of(types))
            infos = [mi.type_info(annotation) for annotation in types]
        except (TypeError, RuntimeError) as error:
            raise ConfigError(
                f"function {label!r} has an annotation that arguments cannot be checked "
                f"against: {str(error).splitlines()[-1]}"
            ) from None
        shapes = [None if ignore_unknown_keys else _shape_of(info, {}) for info in infos]
        self.counted: int = max(map(_counted_elements, infos), default=0)
        """Which array elements count as map keys do; see ``UserFunction``."""
        self.decoders: tuple[Callable[[bytes], tuple[Any, ...]], ...] = tuple(
            _decoder(types[:count], shapes[:count]) for count in range(len(types) + 1)
        )
        """By number of arguments: takes a MsgPack array of this many objects."""

    def named(self, label: str) -> Arguments:
        """The same for a function of another name."""
        copy = object.__new__(Arguments)
        copy._label = label
        copy._names, copy.least = self._names, self.least
        copy.counted, copy.decoders = self.counted, self.decoders
        return copy

    def refuse(self, error: Exception) -> Exception:
        """What to raise for what a decoder raised."""
        if isinstance(error, msgspec.ValidationError):
            return IllegalParamsError(f"{self._label}: {self._named(str(error))}")
        if isinstance(error, (*_REFUSALS, msgpack.UnpackException)):
            reason = str(error) or type(error).__name__
            return IllegalParamsError(f"{self._label}: the arguments cannot be read: {reason}")
        return error

    def _named(self, text: str) -> str:
        """Says ``times`` where msgspec says ``$[1]``."""
        return re.sub(r"`\$\[(\d+)\]", lambda m: f"`{self._names[int(m[1])]}", text, count=1)


def _array_of(types: Sequence[Any]) -> Any:
    return tuple[tuple(types)] if types else tuple[()]  # type: ignore[misc]


def _decoder(types: Sequence[Any], shapes: Sequence[Shape | None]) -> Callable[[bytes], Any]:
    if types and all(annotation is Any for annotation in types):
        return _decode_untyped
    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(_array_of(types)).decode
    if not any(shapes):
        return decode
    outer = Shape()
    outer.positions = list(shapes)
    decode_untyped = msgspec.msgpack.Decoder().decode

    def decode_known(array: bytes) -> Any:
        arguments = decode(array)
        unknown = outer.unknown_key(decode_untyped(array))
        if unknown is not None:
            key, path = unknown
            raise msgspec.ValidationError(f"Object contains unknown field `{key}` - at `${path}`")
        return arguments

    return decode_known


def _decode_untyped(array: bytes) -> tuple[Any, ...]:
    return tuple(msgpack.unpackb(array, strict_map_key=False, timestamp=3))


# Unknown keys. msgspec refuses them only in Structs that ask for it, so a second,
# untyped reading of the body is looked through where a field may be misspelt.


class Shape:
    """Where objects with fields are in a value that was decoded without types.

    ``fields`` are those of an object, ``tagged`` those of a union's Structs by the
    tag in ``tag_field``; ``values`` is the shape of a dict's values, ``elements``
    that of a list's, ``positions`` those of a tuple's. None where no object is.
    """

    __slots__ = ("elements", "fields", "positions", "tag_field", "tagged", "values")

    def __init__(self) -> None:
        self.fields: dict[Any, Shape | None] | None = None
        self.tag_field: str | None = None
        self.tagged: dict[Any, dict[Any, Shape | None]] = {}
        self.values: Shape | None = None
        self.elements: Shape | None = None
        self.positions: list[Shape | None] = []

    def __bool__(self) -> bool:
        return not (
            self.fields is None
            and not self.tagged
            and self.values is None
            and self.elements is None
            and not any(position is not None for position in self.positions)
        )

    def unknown_key(self, value: Any) -> tuple[Any, str] | None:
        """The first key that is no field, and where it is, as msgspec writes it."""
        if isinstance(value, dict):
            fields = self.fields
            if self.tagged:
                fields = self.tagged.get(value.get(self.tag_field), fields)
            if fields is not None:
                for key, item in value.items():
                    if key not in fields:
                        return key, ""
                    found = _unknown_within(fields[key], item, f".{key}")
                    if found is not None:
                        return found
            elif self.values is not None:
                for item in value.values():
                    found = self.values.unknown_key(item)
                    if found is not None:
                        return found[0], "[...]" + found[1]
        elif isinstance(value, list):
            if self.elements is not None:
                for item in value:
                    found = self.elements.unknown_key(item)
                    if found is not None:
                        return found[0], "[...]" + found[1]
            for at, (shape, item) in enumerate(zip(self.positions, value, strict=False)):
                found = _unknown_within(shape, item, f"[{at}]")
                if found is not None:
                    return found
        return None


def _unknown_within(shape: Shape | None, value: Any, path: str) -> tuple[Any, str] | None:
    found = None if shape is None else shape.unknown_key(value)
    return None if found is None else (found[0], path + found[1])


def _shape_of(info: mi.Type, seen: dict[Any, Shape]) -> Shape | None:
    """The shape of a type; of a type that holds itself, one that holds itself."""
    if isinstance(info, mi.Metadata):
        return _shape_of(info.type, seen)
    cls = getattr(info, "cls", None)
    if cls in seen:
        return seen[cls]
    shape = Shape()
    if isinstance(info, mi.UnionType):
        for member in info.types:
            _merge(shape, _shape_of(member, seen))
    elif isinstance(info, (mi.StructType, mi.DataclassType, mi.TypedDictType)):
        seen[cls] = shape
        fields = {field.encode_name: _shape_of(field.type, seen) for field in info.fields}
        if isinstance(info, mi.StructType) and info.array_like:
            tag: list[Shape | None] = [None] if info.tag is not None else []
            shape.positions = tag + list(fields.values())
        elif isinstance(info, mi.StructType) and info.tag is not None:
            shape.tag_field = info.tag_field
            shape.tagged[info.tag] = {info.tag_field: None, **fields}
        else:
            shape.fields = fields
    elif isinstance(info, mi.NamedTupleType):
        seen[cls] = shape
        shape.positions = [_shape_of(field.type, seen) for field in info.fields]
    elif isinstance(info, mi.TupleType):
        shape.positions = [_shape_of(item, seen) for item in info.item_types]
    elif isinstance(info, mi.DictType):
        shape.values = _shape_of(info.value_type, seen)
    elif isinstance(info, mi.CollectionType):
        shape.elements = _shape_of(info.item_type, seen)
    return shape or None


def _merge(shape: Shape, member: Shape | None) -> None:
    """Puts a union's member into its shape. msgspec allows no two of one MsgPack type."""
    if member is None:
        return
    if member.fields is not None:
        shape.fields = member.fields
    shape.tag_field = member.tag_field or shape.tag_field
    shape.tagged.update(member.tagged)
    shape.values = member.values or shape.values
    shape.elements = member.elements or shape.elements
    shape.positions = member.positions or shape.positions


# Hashes that a client can make collide.


def _counted_elements(info: mi.Type, seen: frozenset[Any] = frozenset()) -> int:
    """Which array elements count as keys for a type: 0 none, 1 all but str and bin, 2 all."""
    cls = getattr(info, "cls", None)
    if cls in seen:
        return 0
    inner = seen | {cls} if cls is not None else seen
    children: list[int] = [_counted_elements(child, inner) for child in _children(info)]
    if isinstance(info, (mi.SetType, mi.FrozenSetType)):
        children.append(_weakness(info.item_type))
    elif isinstance(info, mi.DictType) and _weakness(info.key_type) == COUNT_ALL:
        children.append(COUNT_ALL)  # keys that are no text count as they are
    return max(children, default=COUNT_NONE)


def _children(info: mi.Type) -> list[mi.Type]:
    if isinstance(info, mi.Metadata):
        return [info.type]
    if isinstance(info, mi.UnionType):
        return list(info.types)
    if isinstance(info, mi.TupleType):
        return list(info.item_types)
    if isinstance(info, mi.DictType):
        return [info.value_type]
    if isinstance(info, mi.CollectionType):
        return [info.item_type]
    fields: tuple[mi.Field, ...] = getattr(info, "fields", ())
    return [field.type for field in fields]


def _weakness(info: mi.Type) -> int:
    """How what a set or the keys of a dict hold count: as _counted_elements."""
    if isinstance(info, _HASHED_WITH_SECRET):
        return COUNT_NONE
    if isinstance(info, _TEXT_TO_NUMBER):
        return COUNT_ALL
    return max([COUNT_NUMBERS, *map(_weakness, _children(info))])
