"""The way back: a solution that another solver found for an exported problem, proved as a bound of the network.

It is an ordinary solve whose formulation is read from the map (what its terms weigh, by rule) and whose backend
answers from the solution file: the proof, the search for a witness and the result are those of every solve.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lipmodel.backends.base import Availability, Capabilities, Installed, Point, SolveOptions, Termination
from lipmodel.backends.conic import SETTLED
from lipmodel.errors import UsageError
from lipmodel.formulation import Formulation
from lipmodel.io.sidecar import Link, Pairs, expression_of, read_map, values_of
from lipmodel.io.solutions import Solution, read_solution
from lipmodel.member import free_multipliers
from lipmodel.model.forms import LinearForm, QuadraticForm
from lipmodel.model.model import Model
from lipmodel.model.qc import PairTerms
from lipmodel.model.terms import Factored, Rule
from lipmodel.network.linear import Selection

if TYPE_CHECKING:
    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem
    from lipmodel.result import Result


class Mapped(Formulation):
    """The formulation behind a map, as far as its multipliers go: its models hold the weights of all ruled terms.

    Their linear forms are zero. What is proved is the network's own inequality with these weights, in which the forms
    stand already.
    """

    link: Any = None
    default_norm: ClassVar[str] = "2"

    def __post_init__(self) -> None:
        # a class of formulations has one name and its norms; here every map has its own
        object.__setattr__(self, "name", self.link.formulation)
        object.__setattr__(self, "norms", {self.link.norms})

    def options(self) -> dict[str, Any]:
        return dict(self.link.options)

    def build(self, system: Any, spec: Any) -> Model:
        """The model of the map for a system, or for the one with its dead neurons. Raises UsageError."""
        link: Link = self.link
        if system.complete is None or _fits(link, system):
            return _model(link, system)
        model = _model(link, system.complete)
        if free_multipliers(model):
            raise UsageError(f"{link.path} does not fit the network: an activation has another size")
        return model


def _size(link: Link, system: IncrementSystem, kind: str, activation: str | None) -> tuple[int, Any]:
    """The size of a term by its rule, and the activation that it is about."""
    if kind != "slope":
        return (system.input if kind == "ball-input" else system.output).size, None
    for a in system.activations:
        if a.name == activation:
            return a.size, a
    raise UsageError(f"{link.path} does not fit the network: there is no activation {activation!r:.60}")


def _fits(link: Link, system: IncrementSystem) -> bool:
    try:
        _model(link, system)
    except UsageError:
        return False
    return True


def _model(link: Link, system: IncrementSystem) -> Model:
    terms = []
    for stated in link.weights:
        size, subject = _size(link, system, stated.kind, stated.activation)
        first = system.signals[0]
        nothing = LinearForm(size=size, blocks={first: Selection(index=np.full(size, -1), size=first.size)})
        weight = expression_of(link, stated.weight, size)
        rule = Rule(kind=stated.kind, subject=subject)
        terms.append(Factored(weight=weight, left=nothing, right=nothing, rule=rule))
    terms += [_paired(link, pairs, system) for pairs in link.pairs]
    model = Model(link.formulation, variables=list(link.variables))
    model.require(QuadraticForm(terms=tuple(terms)) >= 0)
    model.minimize(expression_of(link, link.objective, 1), bound=link.bound)
    return model


def _paired(link: Link, pairs: Pairs, system: IncrementSystem) -> Factored:
    """The term of pairs of neurons. Raises UsageError."""
    by_name = {a.name: a for a in system.activations}
    if len(pairs.neurons) % 2:
        raise UsageError(f"{link.path} does not fit the network: the neurons of its pairs are an odd number")
    for name, index in pairs.neurons:
        if name not in by_name or not 0 <= index < by_name[name].size:
            raise UsageError(f"{link.path} does not fit the network: there is no neuron {index} of {name!r:.60}")
    neurons = [(by_name[name], index) for name, index in pairs.neurons]
    count = len(neurons) // 2
    sizes = {"weight": 10 * count, "stated": 10 * count, "plain": 6 * count, "flipped": 6 * count}
    read = {key: expression_of(link, getattr(pairs, key), size) for key, size in sizes.items()}
    subject = PairTerms(
        couples=tuple(zip(neurons[::2], neurons[1::2], strict=True)),
        weight=read["stated"],
        plain=read["plain"],
        flipped=read["flipped"],
    )
    first = system.signals[0]
    nothing = LinearForm(size=10 * count, blocks={first: Selection(index=np.full(10 * count, -1), size=first.size)})
    return Factored(weight=read["weight"], left=nothing, right=nothing, rule=Rule(kind="pair", subject=subject))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """A backend whose answer is known already."""

    name: str
    link: Link
    solution: Solution
    say: Callable[[str], None]
    description: str = "a solution from a file"
    capabilities: ClassVar = Capabilities(cones=frozenset({"psd"}))

    def available(self) -> Availability:
        return Installed()

    def refuses(self, model: Model) -> str | None:
        return None

    def solve(self, model: Model, options: SolveOptions) -> Point:
        """The point of the file, or none where its numbers cannot be one."""
        vector = self.solution.vector
        count = 0 if vector is None else len(vector)
        if vector is None or count != self.link.size:
            return self._nothing(f"the solution has {count} numbers, and {self.link.file} is about {self.link.size}")
        with np.errstate(over="ignore", invalid="ignore"):
            values = values_of(self.link, vector)
            if not all(np.all(np.isfinite(v)) for v in values.values()):
                return self._nothing("the solution holds numbers that are not finite")
            assert model.objective is not None
            claim = float(model.objective.value(values)[0])
        # where y is minus the multipliers, the file minimises minus what the model's dual maximises
        lower = self.solution.primal if self.link.sign < 0.0 else self.solution.dual
        estimate = None if lower is None else self.link.sign * lower * self.link.scale + self.link.offset
        termination: Termination = "inaccurate"
        if self.solution.said == "optimal" and estimate is not None:
            settled = abs(claim - estimate) <= options.tol * abs(claim) + SETTLED * self.link.scale
            termination = "optimal" if settled else "inaccurate"
        return Point(values=values, termination=termination, objective=claim, lower=estimate)

    def _nothing(self, why: str) -> Point:
        self.say(f"{why}: closed-form multipliers instead")
        return Point(values=None, termination="failed", message=why)


def certify_solution(
    net: Network | str | os.PathLike[str],
    solution: str | os.PathLike[str],
    map: str | os.PathLike[str],
    *,
    time_limit: float | None = None,
    report: Callable[[str], None] | None = None,
    **solve_options: Any,
) -> Result:
    """A proved bracket from what another solver returned for an exported problem.

    net: the network that was exported, as a path or a Network; solution: the solver's file (`io.solutions`); map: the
    file OUT.map.json that was written beside the problem. Whatever the solution says, the bound is proved: multipliers
    are mended, and replaced by closed forms where they are of no use (`report` is told). solve_options: witness, tol,
    progress, verbose of `solve`. Raises UsageError for files that cannot be read and for a map about another network,
    RefusedInput for the network.
    """
    from lipmodel import pipeline
    from lipmodel.network.doors import load
    from lipmodel.network.graph import Network

    link = read_map(map)
    say = report if report is not None else lambda line: None
    given = read_solution(solution, link)
    network = net if isinstance(net, Network) else load(net, **_choices(link))
    if network.source.sha256 != link.sha256:
        raise UsageError(
            f"{link.path} is about another network: sha256 {link.sha256:.80}, and that of "
            f"{network.source.path or 'this one'} is {network.source.sha256}"
        )
    for note in given.notes:
        say(note)
    if link.own:
        terms = "1 term" if link.own == 1 else f"{link.own} terms"
        say(f"{terms} of {link.formulation!r} without a rule that the proof knows: proved without")
    return pipeline.solve(
        network,
        Mapped(link=link),
        norm=link.spec.norms,
        outputs=link.spec.outputs,
        domain=link.spec.domain,
        backend=Answered(name=f"foreign: {given.solver}", link=link, solution=given, say=say),
        time_limit=time_limit,
        report=report,
        **solve_options,
    )


def _choices(link: Link) -> Mapping[str, Any]:
    return {"graph_input": link.graph_input, "graph_output": link.graph_output}
