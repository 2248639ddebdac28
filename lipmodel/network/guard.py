"""What the bytes of an ONNX file are, before any parser sees them.

Protocol buffers nest, and a few bytes can stand for a large object: an empty node takes two of them. This is a walk
over the wire format, without recursion, that allocates next to nothing. It refuses what ONNX does not define and what
parsers read in different ways (a field given twice, groups, unknown fields, invalid UTF-8), and predicts how much
memory a parser will need, so that nothing large is ever built from a small file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

MAX_DEPTH = 64
"""Messages inside messages. A graph inside a node of a graph takes three levels."""
MAX_PARTS = 2 * 10**6
"""Fields in a file, a packed array counting as one."""
MAX_ITEMS = 50_000
"""Nodes, tensors, and declarations of tensors: of each of them."""
SLACK = 2**28
"""Bytes that every file may unpack to."""
GROWTH = 4
"""Bytes of memory for every byte of the file, beyond that."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_COUNTED = ("NodeProto", "TensorProto", "ValueInfoProto")
_BLOCK = 1 << 20


class Malformed(Exception):  # noqa: N818 - becomes a refusal
    """What is wrong with the bytes, and whether that is their size."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


@dataclass(slots=True, eq=False)
class _Message:
    """A message type: fields by tag, what one takes in memory, and how many there are in the file."""

    name: str
    cost: int = 0
    counted: bool = False
    fields: dict[int, _Field] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """A field as it stands on the wire.

    once: a bit that must not be set twice (shared by the fields that exclude each other), 0 where it may be repeated;
    message: its type where it is one; text: whether it is; packed: bytes of an entry of an array, 0 for variable ones,
    None where it is no array; values: those of a closed enumeration; cost: bytes of memory beyond the content.
    """

    name: str
    once: int
    message: _Message | None = None
    text: bool = False
    packed: int | None = None
    values: frozenset[int] | None = None
    cost: int = 0


def measure(content: bytes) -> int:
    """The bytes of memory that a parser needs for a serialized ModelProto, estimated from above.

    Raises Malformed where these are not the bytes of a ModelProto that ONNX defines, or where that would be too many.
    """
    root = _model()
    limit = SLACK + GROWTH * len(content)
    memory = len(content) + root.cost
    parts = 0
    counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
    spans: list[tuple[int, int, _Message, int]] = [(0, len(content), root, 1)]
    while spans:
        at, stop, message, depth = spans.pop()
        fields = message.fields
        assert fields is not None
        given = 0
        while at < stop:
            start = at
            tag = content[at]
            at += 1
            if tag >= 128:
                tag, at = _varint(content, start, stop)
            field = fields.get(tag)
            if field is None:
                raise Malformed(_unknown(message, tag, start))
            if given & field.once:
                raise Malformed(f"byte {start}: {field.name} of a {message.name} is given twice")
            given |= field.once
            memory += field.cost
            parts += 1
            if not parts % 4096:
                _check_size(parts, memory, limit, counts)
            wire = tag & 7
            if wire == _LENGTH:
                length = content[at] if at < stop else 128
                at += 1
                if length >= 128:
                    length, at = _varint(content, at - 1, stop)
                if length > stop - at:
                    raise Malformed(f"byte {start}: {field.name} of a {message.name} goes beyond its end: cut off?")
                if field.message is not None:
                    inner = field.message
                    if inner.counted:
                        counts[inner.name] += 1
                    if length:
                        spans.append((at, at + length, inner, depth + 1))
                elif field.text:
                    _check_text(content, at, length, field.name)
                elif field.packed is not None:
                    memory += _packed(content, at, length, field)
                at += length
            elif wire == _VARINT:
                if at < stop and content[at] < 128:
                    value = content[at]
                    at += 1
                else:
                    value, at = _varint(content, at, stop)
                if field.values is not None and value not in field.values:
                    raise Malformed(f"byte {start}: {field.name} of a {message.name} cannot be {value}")
            else:
                at += 8 if wire == _FIXED64 else 4
                if at > stop:
                    raise Malformed(f"byte {start}: {field.name} of a {message.name} is cut off")
        if depth > MAX_DEPTH:
            raise Malformed(f"byte {at}: messages are nested more than {MAX_DEPTH} deep", too_large=True)
    _check_size(parts, memory, limit, counts)
    return memory


def _check_size(parts: int, memory: int, limit: int, counts: dict[str, int]) -> None:
    name, count = max(counts.items(), key=lambda entry: entry[1])
    if count > MAX_ITEMS:
        raise Malformed(f"there are more than {MAX_ITEMS} messages of type {name}", too_large=True)
    if parts > MAX_PARTS:
        raise Malformed(f"there are more than {MAX_PARTS} fields", too_large=True)
    if memory > limit:
        raise Malformed(f"it would unpack to {memory} bytes or more; the limit is {limit}", too_large=True)


def _unknown(message: _Message, tag: int, at: int) -> str:
    number, wire = tag >> 3, tag & 7
    if not number or wire not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
        return f"byte {at} begins no field of a {message.name}"
    known = any(key >> 3 == number for key in message.fields or ())
    return f"byte {at}: field {number} of a {message.name} {'has another type' if known else 'is not defined by ONNX'}"


def _varint(content: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while at < stop:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
        shift += 7
        if shift >= 70:
            break
    raise Malformed(f"byte {at}: a number is cut off, or longer than 64 bits")


def _check_text(content: bytes, at: int, length: int, name: str) -> None:
    try:
        str(content[at : at + length], "utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"byte {at}: {name} is not text") from None


def _packed(content: bytes, at: int, length: int, field: _Field) -> int:
    """Bytes of memory for a packed array."""
    if field.packed:
        if length % field.packed:
            raise Malformed(f"byte {at}: {field.name} has {length} bytes, for entries of {field.packed}")
        return length
    count, run = 0, 0
    for start in range(at, at + length, _BLOCK):
        block = np.frombuffer(content, np.uint8, min(_BLOCK, at + length - start), start)
        ends = np.flatnonzero(block < 128)
        gaps = np.diff(ends, prepend=-1 - run, append=block.size)
        if gaps.max() > 10:
            raise Malformed(f"byte {start}: a number of {field.name} is longer than 64 bits")
        count += ends.size
        run = int(gaps[-1]) - 1
    if run:
        raise Malformed(f"byte {at + length}: {field.name} ends within a number")
    return 16 * count


@lru_cache(maxsize=1)
def _model() -> _Message:
    """ModelProto as the installed onnx package defines it."""
    import onnx

    return _described(onnx.ModelProto.DESCRIPTOR, {})


def _described(root: Any, known: dict[str, _Message]) -> _Message:
    if root.full_name in known:
        return known[root.full_name]
    message = known[root.full_name] = _Message(root.name)
    message.cost = 64 + 16 * len(root.fields)
    message.counted = root.name in _COUNTED
    message.fields = {}
    bits: dict[str, int] = {}
    for descriptor in root.fields:
        group = descriptor.containing_oneof.full_name if descriptor.containing_oneof else descriptor.full_name
        once = 0 if descriptor.is_repeated else bits.setdefault(group, 1 << len(bits))
        for wire, field in _wire(descriptor, once, known):
            message.fields[descriptor.number << 3 | wire] = field
    return message


def _wire(descriptor: Any, once: int, known: dict[str, _Message]) -> list[tuple[int, _Field]]:
    """The forms in which a field may be stored: its wire type, and packed where it is an array of numbers."""
    name, kind = str(descriptor.name), descriptor.type
    if kind == descriptor.TYPE_MESSAGE:
        inner = _described(descriptor.message_type, known)
        return [(_LENGTH, _Field(name, once, message=inner, cost=inner.cost))]
    if kind in (descriptor.TYPE_STRING, descriptor.TYPE_BYTES):
        return [(_LENGTH, _Field(name, once, text=kind == descriptor.TYPE_STRING, cost=48))]
    size = {descriptor.TYPE_FLOAT: 4, descriptor.TYPE_DOUBLE: 8}.get(kind, 0)
    values = None
    if kind == descriptor.TYPE_ENUM:
        values = frozenset(int(value.number) for value in descriptor.enum_type.values)
    single = _Field(name, once, values=values, cost=16)
    forms = [({0: _VARINT, 4: _FIXED32, 8: _FIXED64}[size], single)]
    if descriptor.is_repeated:
        forms.append((_LENGTH, _Field(name, once, packed=size, cost=16)))
    return forms
