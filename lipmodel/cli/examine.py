"""Reading a network for `inspect`: also one that still lacks a choice of input or output, or a bounded domain."""

from __future__ import annotations

from itertools import islice, product
from typing import TYPE_CHECKING, Any

from lipmodel import question
from lipmodel.cli.common import screen_width
from lipmodel.cli.costs import formulation_costs
from lipmodel.cli.statement import Shown, statement
from lipmodel.cli.summary import file_summary, network_summary
from lipmodel.errors import Reason, RefusedInput
from lipmodel.network.graph import Network
from lipmodel.network.onnx_file import read
from lipmodel.network.onnx_import import load
from lipmodel.report.dot import network_dot
from lipmodel.report.tables import printable
from lipmodel.result import write_atomically
from lipmodel.spec import Ball, Global

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lipmodel.network.increments import IncrementSystem
    from lipmodel.spec import Domain

_CHOICE = {"inputs", "outputs"}
_ATTEMPTS = 8
"""How many choices of graph inputs and outputs are tried for a network that needs one."""


def report(
    source: Path | Network, formulation: str | None, asked: dict[str, Any], shown: Shown, dot: str | None = None
) -> list[str]:
    """The lines of `inspect`; asked: the question, as `cli.common.question` gives it. LaTeX comes alone.

    source: an ONNX file, or a network that was read from something else; dot: a file for its graph.
    Raises RefusedInput and UsageError where a solve would, unless a choice or a bounded domain is all that is missing.
    """
    graph = {"graph_input": asked.pop("graph_input"), "graph_output": asked.pop("graph_output")}
    note = ""
    try:
        network = source if isinstance(source, Network) else load(source, **graph)
    except RefusedInput as refusal:
        assert not isinstance(source, Network)
        found = _with_choice(source, graph, refusal)
        if isinstance(found, RefusedInput):
            return [*file_summary(source), "", *_not_global(found)]
        network, note = found
    if dot is not None:
        write_atomically(dot, network_dot(network))
    plain = (asked["norm"], asked["outputs"], asked["domain"]) == (None, "all", "global")
    norms, domain = question.asked(network, formulation, asked["norm"], asked["domain"], asked["options"])
    system = _increments(network, domain, norms[0])
    lines = network_summary(network, width=screen_width())
    if isinstance(system, RefusedInput):
        return [*lines, "", *([note] if note else []), *_not_global(system)]
    if not isinstance(domain, Global):
        asked |= {"norm": norms, "domain": domain}
        ball = f" (in the {norms[0]}-norm)" if isinstance(domain, Ball) else ""
        lines += ["", f"on {domain}{ball}: {system.neurons} activations are not affine, of those that matter"]
    if formulation is not None or shown.anything or asked["options"] or not plain:
        if note:
            # what is stated depends on the choice that is missing
            raise RefusedInput(
                network.source.path or "the network", [Reason(kind="inputs", where="graph", message=note)]
            )
        stated = statement(system, formulation, asked, shown)
        if shown.latex:
            return stated
        return [*lines, "", *stated]
    if note:
        return [*lines, "", note]
    return [*lines, "", *formulation_costs(system, {"domain": asked["domain"]}, width=screen_width())]


def _increments(network: Network, domain: Domain, norm: str) -> IncrementSystem | RefusedInput:
    """The increment system, or the refusal where a bounded domain would mend it. Raises RefusedInput otherwise."""
    try:
        return question.systems(network, domain, norm).system
    except RefusedInput as refusal:
        if not _needs_domain(refusal.reasons) or not isinstance(domain, Global):
            raise
        return refusal


def _needs_domain(reasons: Sequence[Reason]) -> bool:
    """Whether all that stands against the network is that its constant is infinite on the whole space."""
    return all(r.kind == "non-lipschitz" and "discontinuous" not in r.message for r in reasons)


def _not_global(refusal: RefusedInput) -> list[str]:
    hopeless = any("not supported on a domain" in r.message for r in refusal.reasons)
    way = "a bounded domain would be needed" + (
        ", and is not supported for these nodes" if hopeless else " (--domain box:LO:HI or ball:X:EPS)"
    )
    return [
        f"there is no global Lipschitz constant: {way}",
        *(printable(f"  - {r}") for r in refusal.reasons),
    ]


def _with_choice(path: Path, graph: dict[str, Any], refusal: RefusedInput) -> tuple[Network, str] | RefusedInput:
    """The network under some choice of graph inputs and outputs, and what is to be chosen; or why it needs a domain.

    Raises the refusal where neither a choice nor a domain is all that is missing.
    """
    if _needs_domain(refusal.reasons):
        return refusal
    if not any(r.kind in _CHOICE for r in refusal.reasons):
        raise refusal
    for choice in _choices(path, graph):
        try:
            network = load(path, **choice)
        except RefusedInput as other:
            if _needs_domain(other.reasons):
                return other
            continue
        return network, _missing_choice(network, graph, choice)
    raise refusal


def _choices(path: Path, graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices of graph inputs and outputs where none was made: all of them first, then one at a time."""
    model = read(path).model
    weights = {t.name for t in model.graph.initializer}
    names = {
        "graph_input": [i.name for i in model.graph.input if i.name not in weights],
        "graph_output": [o.name for o in model.graph.output],
    }
    options = {
        key: ["all", *listed] if graph[key] is None and len(listed) > 1 else [graph[key]]
        for key, listed in names.items()
    }
    made = (dict(zip(options, pair, strict=True)) for pair in product(*options.values()))
    yield from islice((choice for choice in made if choice != graph), _ATTEMPTS)


def _missing_choice(network: Network, graph: dict[str, Any], choice: dict[str, Any]) -> str:
    listed = {"graph_input": network.source.graph_inputs, "graph_output": network.source.graph_outputs}
    parts = []
    for key, flag in (("graph_input", "--graph-input"), ("graph_output", "--graph-output")):
        if choice[key] != graph[key]:
            names = ", ".join(map(str, listed[key]))
            parts.append(f"{flag} NAME (or all) among {names}; shown here: {choice[key]}")
    return printable("to solve it, choose " + ", and ".join(parts))
