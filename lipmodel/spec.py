"""What is asked: a norm pair, a domain and a choice of outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lipmodel.domain import Ball, Box, Domain, Global, parse_domain
from lipmodel.errors import UsageError

Norm = Literal["1", "2", "inf"]
NORMS: tuple[Norm, ...] = ("1", "2", "inf")


def as_norm(value: Any) -> Norm:
    """A norm name from what people write: 1, "1", "l2", math.inf, "linf". Raises UsageError."""
    text = str(value).strip().lower()
    text = {"infinity": "inf", "oo": "inf", "1.0": "1", "2.0": "2"}.get(text.removeprefix("l"), text.removeprefix("l"))
    if text not in NORMS:
        raise UsageError(f"unknown norm {value!r}: the norms are 1, 2 and inf")
    return text


def norm_pair(value: Any) -> tuple[Norm, Norm]:
    """(input norm, output norm) from "P" or "P:Q" (or a pair); "inf" means inf:inf. Raises UsageError."""
    if isinstance(value, tuple | list):
        parts = [str(v) for v in value]
    else:
        parts = str(value).replace("->", ":").replace("→", ":").split(":")
    if len(parts) == 1:
        parts = [parts[0], parts[0]]
    if len(parts) != 2:
        raise UsageError(
            f"unknown norm pair {value!r}: write P or P:Q with P, Q among 1, 2, inf (for example 2 or inf:2)"
        )
    return as_norm(parts[0]), as_norm(parts[1])


def dual(norm: Norm | str) -> Norm:
    """The dual norm: 1 <-> inf, 2 <-> 2."""
    table: dict[Norm, Norm] = {"1": "inf", "2": "2", "inf": "1"}
    return table[as_norm(norm)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Which outputs are measured, counted in the flattened output tensor.

    "all": the whole vector; "vector": the vector of the outputs in `indices`; "margin": the differences y_I - y_j for
    j != I (`indices` = (I,)), each by itself, so that the answer is the largest of their constants.
    """

    kind: Literal["all", "vector", "margin"] = "all"
    indices: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "all":
            return "all"
        listed = ",".join(str(i) for i in self.indices)
        return f"margin:{listed}" if self.kind == "margin" else listed

    def check(self, size: int) -> None:
        """Raises UsageError unless the choice makes sense for `size` outputs."""
        wrong = [i for i in self.indices if not 0 <= i < size]
        if wrong:
            raise UsageError(
                f"--outputs {self}: the network has outputs 0 to {size - 1}, and {wrong[0]} is not one of them"
            )
        if len(set(self.indices)) != len(self.indices):
            raise UsageError(f"--outputs {self}: an output is named twice")
        if self.kind == "margin" and size < 2:
            raise UsageError("--outputs margin:I needs at least two outputs")


def parse_outputs(value: Any) -> Outputs:
    """Outputs from "all", "I", "I,J,...", "margin:I", an integer or a sequence of integers. Raises UsageError."""
    if isinstance(value, Outputs):
        return value
    if isinstance(value, tuple | list):
        value = ",".join(str(v) for v in value)
    text = str(value).strip()
    if text == "all":
        return Outputs()
    kind: Literal["vector", "margin"] = "margin" if text.startswith("margin:") else "vector"
    try:
        indices = tuple(int(part) for part in text.removeprefix("margin:").split(","))
    except ValueError:
        indices = ()
    if not indices or (kind == "margin" and len(indices) != 1):
        raise UsageError(f"unknown outputs {value!r}: write all, I, I,J,... or margin:I with whole numbers")
    return Outputs(kind=kind, indices=indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The question: sup ||f(x) - f(y)||_q / ||x - y||_p over the domain, for the chosen outputs."""

    input_norm: Norm = "2"
    output_norm: Norm = "2"
    domain: Domain = field(default_factory=Global)
    outputs: Outputs = field(default_factory=Outputs)

    @property
    def norms(self) -> tuple[Norm, Norm]:
        return (self.input_norm, self.output_norm)

    def to_json(self) -> dict[str, Any]:
        return {
            "input_norm": self.input_norm,
            "output_norm": self.output_norm,
            "domain": self.domain.to_json(),
            "outputs": str(self.outputs),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        return cls(
            input_norm=as_norm(data["input_norm"]),
            output_norm=as_norm(data["output_norm"]),
            domain=parse_domain(data["domain"]),
            outputs=parse_outputs(data["outputs"]),
        )


__all__ = [
    "NORMS",
    "Ball",
    "Box",
    "Domain",
    "Global",
    "Norm",
    "Outputs",
    "Spec",
    "as_norm",
    "dual",
    "norm_pair",
    "parse_domain",
    "parse_outputs",
]
