"""Changes to files: of their bytes, and of what the bytes say, with the lengths around it mended."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import onnx

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 127, 128, 255, 256, 1000, 10**7 + 1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-310, 1e38, 3.5e38, 1e300, float("inf"), float("-inf"), float("nan"))
NAMES = (
    "",
    "x",
    "y",
    "w",
    "Relu",
    "Floor",
    "Loop",
    "MatMul",
    "Conv",
    "Mul",
    "Reshape",
    "ai.onnx.ml",
    "../w",
    "\0",
    "é",
)
CHUNK = 16


def mutated(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """A file with one to four changes, half of the time to its bytes and half of the time to the model in it."""
    times = random.choice((1, 1, 1, 2, 2, 4))
    if random.random() < 0.5:
        for _ in range(times):
            content = random.choice(_BYTES)(content, random.choice(others), random)
        return content
    model = onnx.ModelProto()
    model.ParseFromString(content)
    for _ in range(times):
        change_model(model, random)
    return bytes(model.SerializeToString())


def _flip(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    flipped = bytes([b ^ (1 << random.randrange(8)) for b in content[at : at + 1]])
    return content[:at] + flipped + content[at + 1 :]


def _overwrite(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    new = random.choice((b"\0", b"\x7f", b"\x80", b"\xff", b"\x01", random.randbytes(1)))
    return content[:at] + new + content[at + 1 :]


def _overwrite_number(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    with_sign = random.choice(("<f", "<d"))
    value = random.choice(REALS)
    try:
        new = struct.pack(with_sign, value)
    except OverflowError:
        new = struct.pack("<d", value)
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.randint(1, CHUNK)) + content[at:]


def _delete(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.randint(1, CHUNK) :]


def _repeat(content: bytes, other: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    chunk = content[at : at + random.randint(1, 4 * CHUNK)]
    return content[:at] + chunk * random.choice((2, 3, 50)) + content[at + len(chunk) :]


def _splice(content: bytes, other: bytes, random: Random) -> bytes:
    at, start = random.randrange(len(content) + 1), random.randrange(len(other) + 1)
    chunk = other[start : start + random.randint(1, 4 * CHUNK)]
    return content[:at] + chunk + content[at + random.choice((0, len(chunk))) :]


def _truncate(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


_BYTES: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite_number,
    _insert,
    _delete,
    _repeat,
    _splice,
    _truncate,
)


def change_model(model: Any, random: Random) -> None:
    """Change one field of one message of a model, in place."""
    message = random.choice(_all_messages(model))
    descriptor = random.choice(message.DESCRIPTOR.fields)
    # most fields of most messages are absent, and what is there matters more
    if message.ListFields() and random.random() < 0.85:
        descriptor = random.choice(message.ListFields())[0]
    if descriptor.is_repeated:
        _change_repeated(getattr(message, descriptor.name), descriptor, model, random)
    elif random.random() < 0.1:
        message.ClearField(descriptor.name)
    elif descriptor.type == descriptor.TYPE_MESSAGE:
        _replace(getattr(message, descriptor.name), model, random)
    else:
        setattr(message, descriptor.name, _scalar(getattr(message, descriptor.name), descriptor, model, random))


def _all_messages(root: Any) -> list[Any]:
    found, stack = [], [root]
    while stack:
        message = stack.pop()
        found.append(message)
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                stack.extend(value if descriptor.is_repeated else [value])
    return found


def _change_repeated(items: Any, descriptor: Any, model: Any, random: Random) -> None:
    kind = random.randrange(4)
    at = random.randrange(len(items) + 1)
    is_message = descriptor.type == descriptor.TYPE_MESSAGE
    if kind == 0 and at < len(items):
        del items[at]
    elif kind == 1 and at < len(items):
        copies = [items[at]] * random.choice((1, 1, 2, 30))
        items.extend(copies)
    elif kind == 2 and len(items) > 1:
        order = random.sample(list(items), len(items))
        if is_message:
            copies = [type(item).FromString(item.SerializeToString()) for item in order]
            del items[:]
            items.extend(copies)
        else:
            items[:] = order
    elif is_message:
        if at < len(items):
            _replace(items[at], model, random)
        else:
            items.add()
    elif at < len(items):
        items[at] = _scalar(items[at], descriptor, model, random)
    else:
        items.append(_scalar(items[0] if len(items) else None, descriptor, model, random))


def _replace(message: Any, model: Any, random: Random) -> None:
    """Another message of the same type takes its place."""
    same = [m for m in _all_messages(model) if m.DESCRIPTOR is message.DESCRIPTOR]
    if same:
        message.CopyFrom(type(message).FromString(random.choice(same).SerializeToString()))


def _scalar(value: Any, descriptor: Any, model: Any, random: Random) -> Any:
    if descriptor.type in (descriptor.TYPE_STRING, descriptor.TYPE_BYTES):
        return _words(value, descriptor, model, random)
    if descriptor.type in (descriptor.TYPE_FLOAT, descriptor.TYPE_DOUBLE):
        return random.choice(REALS) if random.random() < 0.7 else (value or 0.0) * random.choice((-1.0, 2.0, 1.001))
    if descriptor.type == descriptor.TYPE_ENUM:
        return random.choice(list(descriptor.enum_type.values)).number
    number = random.choice(NUMBERS) if random.random() < 0.5 else (value or 0) + random.choice((-1, 1, 2, -2))
    bits = 31 if descriptor.type == descriptor.TYPE_INT32 else 63
    low = 0 if descriptor.type == descriptor.TYPE_UINT64 else -(2**bits)
    return min(max(number, low), 2**bits - 1)


def _words(value: Any, descriptor: Any, model: Any, random: Random) -> Any:
    if descriptor.type == descriptor.TYPE_BYTES:
        content = bytes(value or b"")
        return random.choice(_BYTES)(content, content, random)
    graph = model.graph
    known = [name for n in graph.node for name in (*n.input, *n.output, n.op_type)]
    known += [t.name for t in graph.initializer] + [a.name for n in graph.node for a in n.attribute]
    return random.choice((*known, *NAMES))
