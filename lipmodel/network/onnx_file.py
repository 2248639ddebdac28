"""Reading an ONNX file: bytes, protobuf, external data. Nothing here trusts the file.

The bytes are walked by `guard` before a parser sees them, so that the parser cannot be made to build something large,
deep or ambiguous; what the tensors unpack to is counted before it is allocated.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from lipmodel.errors import Reason, RefusedInput, UsageError
from lipmodel.machine import available_memory
from lipmodel.network import guard

Array = np.ndarray[Any, Any]

MAX_FILE_BYTES = 2**31 - 1
"""Protocol buffers are not defined beyond this size."""
MAX_STORED = 2 * 10**8
"""The largest number of entries of one stored tensor."""
MAX_RANK = 32
"""The largest number of dimensions; numpy knows no more than 64, and what handlers do adds some."""
MAX_UNPACKED = 5 * 10**8
"""The largest number of entries of all stored tensors together."""
MAX_FOLDED = 10**8
"""The largest number of entries of all constants that are computed from others, which may come from a small file."""


class Refusal(Exception):  # noqa: N818 - becomes a Reason
    """What is wrong in one place; the importer adds the place, and goes on looking for more."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint

    def at(self, where: str) -> Reason:
        """The reason to refuse, with its place."""
        return Reason(kind=self.kind, where=where, message=self.message, hint=self.hint)


@dataclass(slots=True)
class Tally:
    """The entries of constant tensors, counted before they are allocated: stored ones by key, and folded ones."""

    keys: dict[str, int] = field(default_factory=dict)
    stored: int = 0
    folded: int = 0

    def store(self, key: str, entries: int) -> None:
        """Count a stored tensor, once for its key. Raises Refusal (size-limit) where they become too many."""
        self.stored += max(0, entries - self.keys.get(key, 0))
        self.keys[key] = max(entries, self.keys.get(key, 0))
        if self.stored > MAX_UNPACKED:
            raise Refusal("size-limit", f"the stored tensors have {self.stored} entries; the limit is {MAX_UNPACKED}")
        if entries > guard.SLACK // 16 and 16 * entries > available_memory():
            raise Refusal("size-limit", f"{entries} constants do not fit into the memory of this machine")

    def fold(self, entries: int) -> None:
        """Count what is computed from constants, in memory or work. Raises Refusal (size-limit)."""
        self.folded += entries
        if self.folded > MAX_FOLDED:
            message = f"the constants that are computed have {self.folded} entries together; the limit is {MAX_FOLDED}"
            raise Refusal("size-limit", message, "store them, folded, in the file")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxFile:
    """A parsed model with what is needed to find its external data.

    content: its bytes, and digest their sha256; label: how messages name it; path: None for a model given in memory;
    foreign: whether it came as a file, or its bytes, and not as a model that this program has made itself; external:
    the bytes read from other files, by the key that `decode` was given; constants: how many there are.
    """

    model: Any
    content: bytes
    label: str
    path: Path | None
    digest: bytes
    foreign: bool = True
    external: dict[str, bytes] = field(default_factory=dict)
    constants: Tally = field(default_factory=Tally)

    def sha256(self) -> str:
        """The sha256 of the file, or of the digests of the file and of the external tensors that were used."""
        if not self.external:
            return self.digest.hex()
        parts = [self.digest, *(hashlib.sha256(self.external[name]).digest() for name in sorted(self.external))]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def read(source: str | os.PathLike[str] | bytes | Any) -> OnnxFile:
    """Parse a path, the bytes of a file, or an onnx.ModelProto.

    Raises UsageError where there is no such file, RefusedInput (file-format, size-limit) where it is not an ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        path, label = None, "the model"
        try:
            content = bytes(source.SerializeToString(deterministic=True))
        except (ValueError, EncodeError) as error:
            raise _refused(label, "size-limit", f"it cannot be serialized: {error}") from error
    else:
        path = None if isinstance(source, (bytes, bytearray, memoryview)) else Path(source)
        label = "the model" if path is None else str(path)
        content = bytes(source) if path is None else _content(path)  # type: ignore[arg-type]
    model = _parsed(content, label)
    if not model.HasField("graph"):
        raise _refused(label, "file-format", "this is not an ONNX model: it has no graph")
    digest, foreign = hashlib.sha256(content).digest(), not isinstance(source, onnx.ModelProto)
    return OnnxFile(model=model, content=content, label=label, path=path, digest=digest, foreign=foreign)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(str(path), "size-limit", "the file is larger than 2 GiB")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}") from error
    except MemoryError:
        raise _refused(str(path), "size-limit", "the file does not fit into the memory of this machine") from None


def _parsed(content: bytes, label: str) -> Any:
    """The model in these bytes, which are looked at before they are given to a parser."""
    try:
        memory = guard.measure(content)
    except guard.Malformed as wrong:
        if wrong.too_large:
            raise _refused(label, "size-limit", str(wrong)) from None
        raise _refused(label, "file-format", f"this is not an ONNX model: {wrong}") from None
    if memory > guard.SLACK and memory > available_memory():
        raise _refused(label, "size-limit", f"it unpacks to {memory} bytes, more than this machine has")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise _refused(label, "file-format", f"this is not an ONNX model: {error}") from error
    return model


def _refused(label: str, kind: str, message: str) -> RefusedInput:
    return RefusedInput(label, [Reason(kind=kind, where="", message=message)])


_FLOATS = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.BFLOAT16: np.dtype("<u2"),
}
_INTEGERS = {
    TensorProto.INT8: np.dtype("<i1"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT8: np.dtype("<u1"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.BOOL: np.dtype("<u1"),
}
_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
_DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

FLOAT_TYPES = frozenset(_FLOATS)


def type_name(elem_type: int) -> str:
    """FLOAT, INT64, ... as ONNX calls them."""
    try:
        return str(TensorProto.DataType.Name(elem_type))
    except ValueError:
        return f"type {elem_type}"


def decode(tensor: Any, file: OnnxFile, key: str) -> Array:
    """The entries of a TensorProto, exactly: float64 for floating types, int64 for integers, bool for booleans.

    key: a name for the tensor that no other tensor of the file has.

    Raises Refusal (dtype, tensor-encoding, size-limit, external-data, non-finite).
    """
    kind = tensor.data_type
    dtype = _FLOATS.get(kind) or _INTEGERS.get(kind)
    if dtype is None:
        raise Refusal("dtype", f"a tensor of {type_name(kind)} cannot be used", "float16, bfloat16, float32 or float64")
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise Refusal("tensor-encoding", f"negative dimensions {shape}")
    count = prod(shape)
    if len(shape) > MAX_RANK:
        raise Refusal("size-limit", f"a tensor of {len(shape)} dimensions; the limit is {MAX_RANK}")
    if max(count, *shape, 0) > MAX_STORED:
        raise Refusal("size-limit", f"a tensor of shape {shape}; the limit is {MAX_STORED} entries")
    file.constants.store(key, count)
    if tensor.HasField("segment"):
        raise Refusal("tensor-encoding", "tensors in segments are not supported")
    flat = _typed(tensor, kind, dtype, count) if _has_fields(tensor) else _raw(tensor, dtype, count, file, key)
    return _converted(flat, kind).reshape(shape)


def constant_key(output: str) -> str:
    """The name under which the external data of a Constant node is kept."""
    return f"{output} (Constant)"


def _has_fields(tensor: Any) -> bool:
    used = [name for name in _DATA_FIELDS if len(getattr(tensor, name))]
    external = tensor.data_location == TensorProto.EXTERNAL
    if len(used) + tensor.HasField("raw_data") + external > 1:
        raise Refusal("tensor-encoding", f"the data is given more than once ({', '.join(used)}, raw or external)")
    expected = _FIELDS.get(tensor.data_type, "int32_data")
    if used and used[0] != expected:
        raise Refusal("tensor-encoding", f"{type_name(tensor.data_type)} data must be in {expected}, not in {used[0]}")
    return bool(used)


def _typed(tensor: Any, kind: int, dtype: Any, count: int) -> Array:
    field_name = _FIELDS.get(kind, "int32_data")
    stored = getattr(tensor, field_name)
    if len(stored) != count:
        raise Refusal("tensor-encoding", f"{len(stored)} numbers are stored where the shape needs {count}")
    if field_name in ("float_data", "double_data", "int64_data"):
        return np.array(stored, dtype=dtype)
    wide = np.array(stored, dtype=np.uint64 if field_name == "uint64_data" else np.int64)
    bits = np.dtype("<u2") if kind == TensorProto.FLOAT16 else dtype
    if wide.size and (wide.min() < np.iinfo(bits).min or wide.max() > np.iinfo(bits).max):
        raise Refusal("tensor-encoding", f"a stored number is outside the range of {type_name(kind)}")
    return wide.astype(bits).view(dtype)


def _raw(tensor: Any, dtype: Any, count: int, file: OnnxFile, key: str) -> Array:
    need = count * dtype.itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        content = _external(tensor, need, file)
        file.external[key] = content
    elif tensor.data_location != TensorProto.DEFAULT:
        raise Refusal("tensor-encoding", f"unknown data location {tensor.data_location}")
    else:
        content = tensor.raw_data
    if len(content) != need:
        raise Refusal("tensor-encoding", f"{len(content)} bytes are stored where the shape needs {need}")
    return np.frombuffer(content, dtype=dtype)


def _converted(flat: Array, kind: int) -> Array:
    if kind in _FLOATS:
        if kind == TensorProto.BFLOAT16:
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        if not np.all(np.isfinite(flat)):
            raise Refusal("non-finite", "a weight is NaN or infinite")
        return flat.astype(np.float64)
    if kind == TensorProto.BOOL:
        if flat.size and flat.max() > 1:
            raise Refusal("tensor-encoding", "a BOOL is neither 0 nor 1")
        return flat.astype(np.bool_)
    if kind == TensorProto.UINT64 and flat.size and flat.max() > np.iinfo(np.int64).max:
        raise Refusal("dtype", "an unsigned integer beyond 2^63")
    return flat.astype(np.int64)


def _external(tensor: Any, need: int, file: OnnxFile) -> bytes:
    """The bytes of a tensor that lie in another file of the model's own folder.

    Links are refused, symbolic or hard, as is whatever leads elsewhere (CVE-2022-25882, CVE-2024-27318).
    """
    if file.path is None:
        raise Refusal(
            "external-data", "a model given in memory has no folder to read external data from", "load a path"
        )
    entries = [(e.key, e.value) for e in tensor.external_data]
    found = dict(entries)
    unknown = sorted(set(found) - {"location", "offset", "length", "checksum"})
    if len(found) != len(entries) or unknown or "location" not in found:
        raise Refusal("external-data", f"location, offset, length, checksum are needed once at most; got {entries}")
    location, offset = found["location"], _number(found, "offset", 0)
    parts = _beside(file.path, location)
    try:
        descriptor = _opened(file.path.parent, parts)
    except OSError as error:
        raise Refusal("external-data", f"{location!r} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Refusal("external-data", f"{location!r} is not a regular file, or has several hard links")
        if os.path.samestat(status, os.stat(file.path)):
            raise Refusal("external-data", f"{location!r} is the model file itself")
        length = _number(found, "length", max(0, status.st_size - offset))
        if offset + length > status.st_size:
            raise Refusal("external-data", f"{location!r} ends before byte {offset + length}")
        if length != need:
            raise Refusal("external-data", f"{length} bytes in {location!r} where the shape needs {need}")
        stream.seek(offset)
        content = stream.read(length)
    if len(content) != need:
        raise Refusal("external-data", f"{location!r} changed while it was read")
    if "checksum" in found and hashlib.sha1(content, usedforsecurity=False).hexdigest() != found["checksum"].lower():
        raise Refusal("external-data", "the checksum is wrong")
    return content


def _number(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text, flags=re.ASCII):
        raise Refusal("external-data", f"the {key} of external data is {text!r}")
    return int(text)


def _opened(folder: Path, parts: tuple[str, ...]) -> int:
    """A descriptor, opened without following links, also ones that were put there since they were looked for."""
    reading = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(folder.joinpath(*parts), reading)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts[:-1]:
        above = at
        try:
            at = os.open(part, reading | os.O_DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    try:
        return os.open(parts[-1], reading, dir_fd=at)
    finally:
        os.close(at)


def _beside(model: Path, location: str) -> tuple[str, ...]:
    """The components of the path of external data, all inside the model's folder and none of them a link."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    unsafe = "\\" in location or "\0" in location or ".." in parts or bool(windows.drive)
    if unsafe or not parts or PurePosixPath(location).is_absolute():
        raise Refusal("external-data", f"the location {location!r} is not a file in the model's own folder")
    target = model.parent
    for part in parts:
        target = target / part
        try:
            mode = os.lstat(target).st_mode
        except (OSError, ValueError) as error:
            raise Refusal("external-data", f"there is no file {location!r} in the model's folder") from error
        if stat.S_ISLNK(mode):
            raise Refusal("external-data", f"{location!r} is, or goes through, a symbolic link")
    if not stat.S_ISREG(mode):
        raise Refusal("external-data", f"{location!r} is not a regular file")
    return parts
