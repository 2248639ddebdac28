"""What a solve returns: a bracket, how far it is proved, and the certificate."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lipmodel.backends.base import Termination
from lipmodel.errors import UsageError
from lipmodel.spec import Global, Spec

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

SCHEMA = "lipmodel/result/1"
Assurance = Literal["proved", "model", "numeric", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock seconds of the stages; import_ is the reading and checking of the network.

    build, solve and certify are sums over the programs of a family: where these run in several processes, a stage may
    take more seconds than total, which is the time from the beginning to the end. In JSON import_ is "import".
    """

    import_: float = 0.0
    build: float = 0.0
    solve: float = 0.0
    certify: float = 0.0
    lower: float = 0.0
    total: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {
            "import": self.import_,
            "build": self.build,
            "solve": self.solve,
            "certify": self.certify,
            "lower": self.lower,
            "total": self.total,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Timings:
        return cls(**{("import_" if k == "import" else k): float(v) for k, v in data.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputBound:
    """The bracket of one output (for margins: of y_I - y_output)."""

    output: int
    bound: float
    lower_bound: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """lower <= L <= upper; each end is proved or absent (-inf, inf)."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """upper / lower, inf where one is missing."""
        return self.upper / self.lower if self.lower > 0.0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A proved bracket for a Lipschitz constant.

    bound: proved at `assurance`, rounded up; inf if nothing was proved. claim: what the solver's own objective says.
    lower_bound: witnessed by a pair of points, rounded down. gap: (bound - the solver's lower estimate of the
    relaxation's optimum) / bound. exact: both ends agree to 1e-9. reason: why this formulation, where it was chosen.
    plan: the steps from the model to what the solver got. instead: what was proved where the bound is not the
    formulation's own: "product", "a closed form", or these for some programs of a family.
    """

    spec: Spec
    network: Mapping[str, Any]
    formulation: str
    backend: str | None
    bound: float
    assurance: Assurance
    termination: Termination
    claim: float | None = None
    gap: float | None = None
    lower_bound: float | None = None
    per_output: tuple[OutputBound, ...] | None = None
    timings: Timings = field(default_factory=Timings)
    certificate: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    plan: str = ""
    instead: str = ""

    @property
    def exact(self) -> bool:
        """Whether the two ends of the bracket agree to 1e-9."""
        if self.lower_bound is None or not math.isfinite(self.bound):
            return False
        return self.bound - self.lower_bound <= 1e-9 * self.bound

    @property
    def bracket(self) -> Bracket:
        return Bracket(lower=-math.inf if self.lower_bound is None else self.lower_bound, upper=self.bound)

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values; numbers read back exactly, non-finite ones are strings."""
        return {
            "schema": SCHEMA,
            "network": dict(self.network),
            "spec": self.spec.to_json(),
            "formulation": self.formulation,
            "options": dict(self.options),
            "backend": self.backend,
            "bound": number(self.bound),
            "assurance": self.assurance,
            "claim": number(self.claim),
            "gap": number(self.gap),
            "termination": self.termination,
            "lower_bound": number(self.lower_bound),
            "exact": self.exact,
            "per_output": None
            if self.per_output is None
            else [
                {"output": o.output, "bound": number(o.bound), "lower_bound": number(o.lower_bound)}
                for o in self.per_output
            ],
            "timings": self.timings.to_json(),
            "reason": self.reason,
            "plan": self.plan,
            "instead": self.instead,
            "certificate": None if self.certificate is None else dict(self.certificate),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The result from its JSON form. Raises UsageError if it is not one."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise UsageError(f"not a lipmodel result: schema {schema!r}, expected {SCHEMA!r}")
        try:
            return cls._read(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a lipmodel result: {type(error).__name__}: {error}") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Result:
        per = data.get("per_output")
        return cls(
            spec=Spec.from_json(data["spec"]),
            network=data["network"],
            formulation=data["formulation"],
            options=data.get("options", {}),
            backend=data["backend"],
            bound=_float(data["bound"], math.inf),
            assurance=data["assurance"],
            claim=_optional(data["claim"]),
            gap=_optional(data["gap"]),
            termination=data["termination"],
            lower_bound=_optional(data["lower_bound"]),
            per_output=None
            if per is None
            else tuple(
                OutputBound(
                    output=o["output"], bound=_float(o["bound"], math.inf), lower_bound=_optional(o["lower_bound"])
                )
                for o in per
            ),
            timings=Timings.from_json(data["timings"]),
            reason=data.get("reason", ""),
            plan=data.get("plan", ""),
            instead=data.get("instead", ""),
            certificate=data["certificate"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON (to a temporary file, then replaced)."""
        write_atomically(path, json.dumps(self.to_json(), indent=1) + "\n")

    def sentence(self) -> str:
        """The one-line answer."""
        p, q = self.spec.norms
        where = "" if self.spec.outputs.kind == "all" else f", outputs {self.spec.outputs}"
        where += "" if isinstance(self.spec.domain, Global) else f", {self.spec.domain}"
        subject = f"L({p}→{q}{where})"
        lower = f"{rounded(self.lower_bound, up=False)} ≤ " if self.lower_bound is not None else ""
        how = [self.formulation, *([self.backend] if self.backend else []), f"{self.timings.total:.2f} s"]
        if self.assurance in ("proved", "model") and math.isfinite(self.bound):
            return f"{lower}{subject} ≤ {rounded(self.bound, up=True)}   " + ", ".join([self.assurance, *how])
        claim = f"; the solver's unproved claim is {self.claim:.6g}" if self.claim is not None else ""
        return f"{lower}{subject}   no bound proved{claim}   " + ", ".join(how)


def describe(network: Network) -> dict[str, Any]:
    """What a result says about its network."""
    from lipmodel.network.ops import Elementwise, Grouped

    ops = [data["op"] for _, data in network.graph.nodes(data=True)]
    return {
        "path": network.source.path,
        "sha256": network.source.sha256,
        "inputs": network.input_size,
        "outputs": network.output_size,
        "activations": sum(op.size for op in ops if isinstance(op, Elementwise | Grouped)),
        "parameters": network.source.parameters,
    }


def rounded(value: float, *, up: bool, digits: int = 6) -> str:
    """A decimal with few digits that is never on the wrong side: rounded up for bounds, down for lower bounds."""
    from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

    if not math.isfinite(value):
        return str(value)
    context = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR, Emin=-400, Emax=400)
    d = context.create_decimal(Decimal(value))
    if d == 0:
        return "0"
    exponent = d.adjusted()
    if -4 <= exponent < digits + 3:
        text = format(d, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, power = f"{d:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"


def number(value: float | None) -> float | str | None:
    """A JSON number, or a string where JSON has none."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def plain(value: Any) -> Any:
    """A value as JSON has it: what is not a number, a text, a truth value or made of these becomes its text."""
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return number(float(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _float(value: Any, default: float) -> float:
    return default if value is None else float(value)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it. Raises UsageError."""
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
