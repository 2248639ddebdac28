"""The walk over the bytes of a file, against protocol buffers themselves."""

from __future__ import annotations

import gc
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import mutate
import onnx
import pytest
import seeds
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import make, single

from lipmodel.errors import RefusedInput, UsageError
from lipmodel.network import guard, onnx_file

FILES = list(seeds.files().values())


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    """A field with a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


GRAPH, NODE, ATTRIBUTE, INITIALIZER = 7, 1, 5, 5
"""Numbers of fields: of a model, a graph, a node, and a graph again."""


def refused(content: bytes, *, too_large: bool = False) -> str:
    with pytest.raises(guard.Malformed) as wrong:
        guard.measure(content)
    assert wrong.value.too_large == too_large
    return str(wrong.value)


def messages(root: Any) -> list[Any]:
    found = [root]
    for message in found:
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                found.extend(value if descriptor.is_repeated else [value])
    return found


@pytest.mark.parametrize("name", seeds.files())
def test_files_are_measured_from_above(name: str) -> None:
    content = seeds.files()[name]
    assert guard.measure(content) > len(content)
    assert guard.measure(content) < 100 * len(content) + 10**5


@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.sampled_from(FILES))
def test_what_passes_is_what_a_parser_reads(random: Random, content: bytes) -> None:
    content = mutate.mutated(content, FILES, random)
    try:
        guard.measure(content)
    except guard.Malformed:
        return
    model = onnx.ModelProto()
    model.ParseFromString(content)
    for message in messages(model):
        assert not len(UnknownFieldSet(message))
        for descriptor, value in message.ListFields():
            if descriptor.type == descriptor.TYPE_STRING:
                assert all(isinstance(v, str) for v in (value if descriptor.is_repeated else [value]))
    again = model.SerializeToString()
    assert onnx.ModelProto.FromString(again) == model


@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.sampled_from(list(seeds.models().values())))
def test_whatever_a_parser_writes_passes(random: Random, model: Any) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(3):
        mutate.change_model(changed, random)
    guard.measure(changed.SerializeToString())


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    with suppress(guard.Malformed):
        guard.measure(content)
        onnx.ModelProto().ParseFromString(content)


def test_every_form_of_an_array_is_measured() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT64, dims=[3])
    tensor.int64_data.extend([-1, 0, 2**62])
    packed = tensor.SerializeToString()
    loose = TensorProto(name="w", data_type=TensorProto.INT64, dims=[3]).SerializeToString()
    for value in (2**64 - 1, 0, 2**62):
        loose += varint(7 << 3) + varint(value)
    assert TensorProto.FromString(loose) == tensor
    for content in (packed, loose):
        guard.measure(field(GRAPH, field(INITIALIZER, content)))


NESTED = field(ATTRIBUTE, field(6, b""))

BAD = {
    "cut off": (FILES[0][:-3], "cut off"),
    "text": (b"hello world, this is not a model", "not defined"),
    "group": (varint(7 << 3 | 3), "no field"),
    "field zero": (b"\x02\x00", "no field"),
    "unknown field": (field(99, b""), "field 99"),
    "another type": (varint(7 << 3) + b"\x01", "another type"),
    "endless number": (b"\x08" + b"\xff" * 11, "64 bits"),
    "more than 64 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),
    "number cut off": (b"\x08\x80", "cut off"),
    "length cut off": (b"\x3a\x80", "cut off"),
    "no length": (b"\x3a", "cut off"),
    "two graphs": (field(GRAPH, b"") * 2, "twice"),
    "two values of one attribute": (field(GRAPH, field(NODE, field(5, b"\x18\x01\x18\x02"))), "twice"),
    "both forms of a dimension": (
        field(GRAPH, field(11, field(2, field(1, field(2, field(1, b"\x08\x01" + field(2, b"N"))))))),
        "twice",
    ),
    "not text": (field(2, b"\xff\xfe"), "not text"),
    "unknown enumeration": (field(GRAPH, field(NODE, field(5, b"\xa0\x01\x63"))), "cannot be 99"),
    "half a float": (field(GRAPH, field(INITIALIZER, field(4, b"\0" * 6))), "6 bytes"),
    "half a number": (field(GRAPH, field(INITIALIZER, field(7, b"\x01\x80"))), "within a number"),
    "long packed number": (field(GRAPH, field(INITIALIZER, field(7, b"\x80" * 10 + b"\x01"))), "64 bits"),
    "float cut off": (field(GRAPH, field(NODE, field(5, b"\x15\0\0"))), "cut off"),
}


@pytest.mark.parametrize("case", BAD)
def test_bytes_that_are_no_model(case: str) -> None:
    content, words = BAD[case]
    assert words in refused(content)


def test_packed_numbers_over_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_BLOCK", 7)
    random = Random(0)
    for _ in range(200):
        values = [random.choice((0, 1, 127, 128, 2**20, 2**63 - 1, -1)) for _ in range(random.randint(1, 12))]
        tensor = TensorProto(int64_data=values)
        content = field(GRAPH, field(INITIALIZER, tensor.SerializeToString()))
        size = guard.measure(content)
        assert size >= 16 * len(values) + len(content)
        guard.measure(content[:0] + content)
        broken = bytearray(content)
        broken[-1] |= 128
        refused(bytes(broken))
    refused(field(GRAPH, field(INITIALIZER, field(7, b"\x80" * 40))))


def test_deep_nesting_is_refused_without_recursion() -> None:
    content = b""
    for _ in range(30_000):
        content = field(NODE, field(ATTRIBUTE, field(6, content)))  # a graph in an attribute of a node
        if len(content) > 200_000:
            break
    assert "nested" in refused(field(GRAPH, content), too_large=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: field(GRAPH, field(NODE, b"") * (guard.MAX_ITEMS + 1)), "NodeProto"),
        (lambda: field(GRAPH, field(INITIALIZER, b"") * (guard.MAX_ITEMS + 1)), "TensorProto"),
        (lambda: field(GRAPH, field(NODE, field(1, b"") * (guard.MAX_PARTS + 1))), "fields"),
        (lambda: field(25, b"") * 10**5, "unpack"),
        (lambda: field(GRAPH, field(INITIALIZER, field(7, b"\x01" * (guard.SLACK // 8)))), "unpack"),
    ],
    ids=["nodes", "tensors", "fields", "functions", "packed"],
)
def test_small_files_that_unpack_to_something_large(content: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SLACK", 2**24)
    monkeypatch.setattr(guard, "MAX_PARTS", 120_000)
    assert words in refused(content(), too_large=True)


def memory() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096


@pytest.mark.parametrize(
    "piece",
    [
        lambda: field(GRAPH, field(NODE, field(1, b"")) * 40_000),
        lambda: field(GRAPH, field(NODE, field(ATTRIBUTE, b"")) * 40_000),
        lambda: field(GRAPH, field(INITIALIZER, b"\x08\x01") * 40_000),
        lambda: field(GRAPH, field(INITIALIZER, field(7, b"\x01" * 2 * 10**6))),
        lambda: field(GRAPH, field(NODE, field(1, b"") * 400_000)),
        lambda: field(25, b"") * 100_000,
        lambda: field(8, b"") * 400_000,
    ],
    ids=["nodes", "attributes", "tensors", "packed", "strings", "functions", "operator sets"],
)
@pytest.mark.skipif(
    struct.calcsize("P") != 8 or not Path("/proc/self/statm").exists(), reason="sizes of a 64-bit Linux system"
)
def test_a_parser_takes_no_more_than_predicted(piece: Any) -> None:
    content = piece()
    limit = guard.measure(content)
    gc.collect()
    before = memory()
    model = onnx.ModelProto()
    model.ParseFromString(content)
    assert memory() - before <= 1.1 * limit + (4 << 20)


def test_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    content = single("Relu").SerializeToString()
    monkeypatch.setattr(guard, "SLACK", 100)
    monkeypatch.setattr(guard, "GROWTH", 100)
    monkeypatch.setattr(onnx_file, "available_memory", lambda: 10)
    with pytest.raises(RefusedInput, match="more than this machine has"):
        onnx_file.read(content)


def test_a_model_in_memory_is_looked_at_too() -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])])
    model.MergeFromString(field(99, b"abc"))
    with pytest.raises(RefusedInput, match="field 99"):
        onnx_file.read(model)


class Unwilling:
    """A parser, and a model, with a mind of its own."""

    def ParseFromString(self, content: bytes) -> None:
        raise DecodeError("no")

    def SerializeToString(self, deterministic: bool) -> bytes:
        raise ValueError("too large")


def test_parsers_may_refuse_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = single("Relu").SerializeToString()
    monkeypatch.setattr(onnx_file.onnx, "ModelProto", Unwilling)
    with pytest.raises(RefusedInput, match="not an ONNX model: no"):
        onnx_file.read(content)
    with pytest.raises(RefusedInput, match="too large"):
        onnx_file.read(Unwilling())


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "nothing.onnx", tmp_path / "a\0b.onnx"):
        with pytest.raises(UsageError):
            onnx_file.read(path)
    path = tmp_path / "net.onnx"
    path.write_bytes(single("Relu").SerializeToString())
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 10)
    with pytest.raises(RefusedInput, match="2 GiB"):
        onnx_file.read(path)
