"""Domains: the set of inputs over which a Lipschitz constant is taken.

The whole space, a box, or a ball of the input norm. Their numbers are doubles, taken exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.errors import Refuted, UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST = 50_000_000
"""Entries that one repeated number of a certificate may stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Global:
    """The whole input space."""

    def __str__(self) -> str:
        return "global"

    @property
    def is_point(self) -> bool:
        return False

    def sized(self, size: int) -> Global:
        """The domain for a network of `size` inputs."""
        return self

    def contains(self, x: Array, norm: str) -> bool:
        """Whether the point x lies in the domain, decided exactly."""
        return True

    def to_json(self) -> Any:
        return "global"


@dataclass(frozen=True, slots=True)
class Box:
    """{x : lo <= x <= hi}: one number for all inputs, or one for each (flattened, in C order).

    Raises UsageError where an end is not finite or not a double, or a lower end is above the upper one.
    """

    lo: tuple[float, ...]
    hi: tuple[float, ...]

    def __post_init__(self) -> None:
        lo, hi = _doubles(self.lo, "the lower end of a box"), _doubles(self.hi, "the upper end of a box")
        if len(lo) != len(hi):
            if 1 not in (len(lo), len(hi)):
                raise UsageError(f"a box with {len(lo)} lower and {len(hi)} upper ends: the numbers must agree")
            size = max(len(lo), len(hi))
            lo, hi = (v if len(v) == size else v * size for v in (lo, hi))
        wrong = [i for i, (a, b) in enumerate(zip(lo, hi, strict=True)) if a > b]
        if wrong:
            i = wrong[0]
            raise UsageError(f"an empty box: its lower end {lo[i]!r} is above the upper one, {hi[i]!r} (input {i})")
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    def __str__(self) -> str:
        return f"box:{_text(self.lo)}:{_text(self.hi)}"

    @property
    def is_point(self) -> bool:
        return self.lo == self.hi

    def sized(self, size: int) -> Box:
        """The box with one pair of ends per input. Raises UsageError where the numbers do not fit."""
        if len(self.lo) == size:
            return self
        if len(self.lo) != 1:
            raise UsageError(f"--domain box: {len(self.lo)} sides, but the network has {size} inputs")
        return Box(self.lo * size, self.hi * size)

    def contains(self, x: Array, norm: str) -> bool:
        """Whether the point x lies in the box, decided exactly."""
        return len(x) == len(self.lo) and all(a <= float(v) <= b for a, v, b in zip(self.lo, x, self.hi, strict=True))

    def to_json(self) -> Any:
        from lipmodel.certify.certificate import hex_vector

        return {"kind": "box", "lo": hex_vector(self.lo), "hi": hex_vector(self.hi)}


@dataclass(frozen=True, slots=True)
class Ball:
    """{x : ||x - center|| <= radius} in the input norm of the question; one number stands for all coordinates.

    Raises UsageError where a number is not finite or not a double, or the radius is negative.
    """

    center: tuple[float, ...]
    radius: float

    def __post_init__(self) -> None:
        radius = _doubles(self.radius, "the radius of a ball")
        if len(radius) != 1 or radius[0] < 0.0:
            raise UsageError(f"the radius of a ball is one nonnegative number, not {self.radius!r}")
        object.__setattr__(self, "center", _doubles(self.center, "the centre of a ball"))
        object.__setattr__(self, "radius", radius[0])

    def __str__(self) -> str:
        return f"ball:{_text(self.center)}:{_short(self.radius)}"

    @property
    def is_point(self) -> bool:
        return self.radius == 0.0

    def sized(self, size: int) -> Ball:
        """The ball with one coordinate of its centre per input. Raises UsageError where the numbers do not fit."""
        if len(self.center) == size:
            return self
        if len(self.center) != 1:
            raise UsageError(
                f"--domain ball: a centre of {len(self.center)} coordinates, but the network has {size} inputs"
            )
        return Ball(self.center * size, self.radius)

    def contains(self, x: Array, norm: str) -> bool:
        """Whether the point x lies in the ball of this norm, decided in integers."""
        import numpy as np

        from lipmodel.network.exact import dyadic_exponent, integers

        if len(x) != len(self.center):
            return False
        numbers = np.concatenate([np.asarray(x, dtype=np.float64), np.array([*self.center, self.radius])])
        if not np.all(np.isfinite(numbers)):
            return False
        whole = integers(numbers, dyadic_exponent(numbers))
        n, radius = len(self.center), whole[-1]
        gaps = [abs(a - b) for a, b in zip(whole[:n], whole[n : 2 * n], strict=True)]
        if norm == "2":
            return sum(g * g for g in gaps) <= radius * radius
        return (sum(gaps) if norm == "1" else max(gaps, default=0)) <= radius

    def to_json(self) -> Any:
        from lipmodel.certify.certificate import hex_vector

        return {"kind": "ball", "center": hex_vector(self.center), "radius": self.radius.hex()}


Domain = Global | Box | Ball


def parse_domain(value: Any) -> Domain:
    """The domain behind a domain, its JSON form, or a text: global, box:LO:HI or ball:X:EPS. Raises UsageError.

    LO, HI and X: a number, a list a,b,c or the path of an .npy file; EPS: a number.
    """
    if isinstance(value, Global | Box | Ball):
        return value
    if isinstance(value, Mapping):
        return _from_json(value)
    text = str(value).strip() if isinstance(value, str) else ""
    kind, _, rest = text.partition(":")
    if text == "global":
        return Global()
    if kind not in ("box", "ball"):
        raise UsageError(f"unknown domain {value!r}: write global, box:LO:HI or ball:X:EPS")
    first, _, second = rest.rpartition(":")
    if not first.strip() or not second.strip() or ("," not in first and first.count(":") > 0 and not _is_file(first)):
        form = "box:LO:HI with numbers, lists a,b,c or .npy files" if kind == "box" else "ball:X:EPS (X as in box)"
        raise UsageError(f"unknown domain {value!r}: write {form}")
    if kind == "box":
        return Box(_read(first, "--domain box"), _read(second, "--domain box"))
    radius = _read(second, "--domain ball")
    return Ball(_read(first, "--domain ball"), radius)


def _from_json(data: Mapping[str, Any]) -> Domain:
    from lipmodel.certify.certificate import expect_keys, read_float

    kind = data.get("kind")
    if kind not in ("box", "ball"):
        raise UsageError(f"unknown domain {data!r:.80}: a box or a ball")
    try:
        if kind == "box":
            fields = expect_keys(dict(data), {"kind", "lo", "hi"}, "domain")
            return Box(_vector(fields["lo"], "domain.lo"), _vector(fields["hi"], "domain.hi"))
        fields = expect_keys(dict(data), {"kind", "center", "radius"}, "domain")
        return Ball(_vector(fields["center"], "domain.center"), read_float(fields["radius"], "domain.radius"))
    except Refuted as error:
        raise UsageError(str(error)) from None


def _vector(data: Any, where: str) -> tuple[float, ...]:
    from lipmodel.certify.certificate import read_float, read_vector

    if isinstance(data, list) and len(data) == 2 and isinstance(data[0], str) and data[0].startswith("*"):
        count = data[0][1:]
        if not (count.isascii() and count.isdigit() and len(count) < 10 and 0 < int(count) <= LARGEST):
            raise UsageError(f"{where}: {data[0][:40]!r} is not a number of entries")
        return (read_float(data[1], where),) * int(count)
    return tuple(read_vector(data, where).tolist())


def _read(text: str, where: str) -> Any:
    """A number, a list of numbers, or the array in a file."""
    text = text.strip()
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        pass
    if not _is_file(text):
        raise UsageError(f"{where}: {text!r} is neither a number, nor a list of numbers, nor an .npy file")
    import numpy as np

    try:
        return np.load(text, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{where}: {text} cannot be read as an .npy file: {error}") from None


def _is_file(text: str) -> bool:
    import os

    return text.strip().endswith(".npy") or os.path.isfile(text.strip())


def _doubles(values: Any, what: str) -> tuple[float, ...]:
    """Numbers as finite doubles, flattened; what is not exactly a double is refused. Raises UsageError."""
    if isinstance(values, tuple) and values and all(type(v) is float for v in values):
        result = values
    else:
        import numpy as np

        try:
            array = np.asarray(values).ravel()
        except ValueError:
            raise UsageError(f"{what}: not an array of numbers") from None
        if array.dtype.kind not in "fiu" or not array.size:
            raise UsageError(f"{what}: real numbers are needed, not {str(values)[:60]!r}")
        doubles = array.astype(np.float64)
        same = doubles.astype(array.dtype) == array if array.dtype.kind == "f" else _same_integers(doubles, array)
        if not np.all(np.isfinite(doubles)):
            raise UsageError(f"{what}: it must be finite")
        if not np.all(same):
            raise UsageError(f"{what}: {array[~same][0]} is not a double")
        result = tuple(doubles.tolist())
    if not all(math.isfinite(v) for v in result):
        raise UsageError(f"{what}: it must be finite")
    return tuple(v + 0.0 for v in result)  # without negative zeros


def _same_integers(doubles: Array, array: Array) -> Array:
    import numpy as np

    return np.array([int(a) == int(b) for a, b in zip(doubles.tolist(), array.tolist(), strict=True)], dtype=bool)


def _text(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return _short(values[0])
    return ",".join(map(_short, values)) if len(values) <= 3 else f"[{len(values)}]"


def _short(value: float) -> str:
    return repr(value).removesuffix(".0")
