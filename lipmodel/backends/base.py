"""What a backend is: it declares what it can do, takes a model, and gives back a point. It is never trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from lipmodel.bridges.plan import ModelDuals
    from lipmodel.model.model import Model
    from lipmodel.model.variables import Variable

Array = np.ndarray[Any, Any]
Termination = Literal["optimal", "inaccurate", "time-limit", "iteration-limit", "interrupted", "failed", "closed-form"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The solver can be used."""

    version: str = ""

    def __str__(self) -> str:
        return f"installed {self.version}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The solver is not installed; `extra` names what `pip install lipmodel[extra]` would bring."""

    extra: str

    def __str__(self) -> str:
        return f"missing: pip install 'lipmodel[{self.extra}]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlicensed:
    """The solver is installed, but has no licence on this machine."""

    reason: str

    def __str__(self) -> str:
        return f"unlicensed: {self.reason}"


Availability = Installed | Missing | Unlicensed


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOption:
    """One setting of a backend (`--backend-option NAME=VALUE`), of the type of its default; choices: of a text."""

    name: str
    default: bool | int | float | str
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend accepts, as data.

    cones: sets of the conic form, of "psd", "soc", "rsoc", "nonnegative", "zero", "free"; form: whether the solver sees
    the matrix inequalities themselves (geometric) or the dual, matrix variables with one equality per variable of the
    model (standard); structured: reads the factors of a model itself and may refuse a model; max_order: the PSD order
    beyond which it is not chosen by itself; on_request: never chosen by itself; precision: the relative accuracy it
    reaches; feasible: its points satisfy the constraints and are no worse than closed forms, and "optimal" rests on a
    feasible dual point; progress: whether it reports its states; options: its own settings; passes_on: which other
    names reach the solver as they are.
    """

    cones: frozenset[str]
    form: Literal["geometric", "standard"] = "geometric"
    structured: bool = False
    max_order: int = 400
    on_request: bool = False
    precision: float = 1e-8
    feasible: bool = False
    progress: bool = False
    licence: str = "free"
    options: tuple[BackendOption, ...] = ()
    passes_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of a solver's progress: the objective of its best point, a lower estimate, seconds, iteration.

    values: gives that point, where the solver keeps only feasible ones; it is read during the call or not at all.
    bound: the best bound proved so far, which the pipeline adds.
    """

    iteration: int
    objective: float
    lower: float
    seconds: float
    values: Callable[[], Mapping[Variable, Array]] | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveOptions:
    """tol: relative, on the bound. time_limit: seconds. verbose: the solver's own log, on stdout.

    native: the backend's own settings by name; what it does not know, the solver gets as it is.
    """

    tol: float = 1e-6
    time_limit: float | None = None
    max_iterations: int | None = None
    verbose: bool = False
    native: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """What a solver gave back: values of the model's variables (or None), its own objective and lower estimate.

    objective, lower: in the units of the model's objective; None where the solver has none. plan: the steps from the
    model to what the solver got. duals: of the model's constraints, from solvers that hand them out.
    """

    values: Mapping[Variable, Array] | None
    termination: Termination
    objective: float | None = None
    lower: float | None = None
    iterations: int | None = None
    message: str = ""
    plan: str = ""
    duals: ModelDuals | None = None


@runtime_checkable
class Backend(Protocol):
    """A solver. `name` is what the command line calls it."""

    name: str
    description: str
    capabilities: Capabilities

    def available(self) -> Availability: ...

    def refuses(self, model: Model) -> str | None:
        """Why this model cannot be solved here, or None."""

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """Solve; never raises on numerical trouble: that is termination "failed" or "inaccurate"."""
