"""From what is asked to a question in full: the norms, the domain, the outputs and the formulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipmodel.families import measured
from lipmodel.formulation import Formulation
from lipmodel.formulation import formulation as find_formulation
from lipmodel.member import provable
from lipmodel.network.increments import IncrementSystem, local_increments, ranges_over
from lipmodel.network.increments import increments as global_increments
from lipmodel.spec import Domain, Global, Norm, Spec, norm_pair, parse_domain, parse_outputs

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

HARD = {("inf", "1"), ("inf", "2"), ("2", "1")}
"""Norm pairs that are NP-hard even for a matrix: a relaxation is closer than what the product rule takes for them."""
MAX_PROGRAMS = 200
"""Size of a family beyond which a formulation that needs one is not chosen without being asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question and how to answer it; `reason` says why the formulation was chosen, where it was."""

    spec: Spec
    formulation: Formulation
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Systems:
    """A network over a domain, as increments.

    system: with the neurons that are affine on the domain eliminated; masked: with them left in, on a bounded domain;
    ranges: of the pre-activations, there.
    """

    system: IncrementSystem
    masked: IncrementSystem | None = None
    ranges: Mapping[str, Any] | None = None


def asked(
    network: Network, formulation: Any, norm: Any, domain: Any, options: Mapping[str, Any] | None
) -> tuple[tuple[Norm, Norm], Domain]:
    """The norm pair and the domain that are asked about, before a formulation is chosen. Raises UsageError."""
    chosen = parse_domain(domain).sized(network.input_size)
    if norm is None and formulation is not None:
        norm = find_formulation(formulation, options).default_norm
    return norm_pair("2" if norm is None else norm), chosen


def systems(network: Network, domain: Domain, norm: str) -> Systems:
    """The increment systems over a domain; norm: the input norm. Raises RefusedInput."""
    if isinstance(domain, Global):
        return Systems(system=global_increments(network))
    ranges = ranges_over(network, domain, norm)
    system = local_increments(network, domain, ranges)
    masked = local_increments(network, domain, ranges, keep_stable=True)
    return Systems(system=system, masked=masked, ranges=ranges)


def make_request(
    system: IncrementSystem,
    formulation: Any = None,
    *,
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    options: Mapping[str, Any] | None = None,
) -> Request:
    """The question in full: the formulation (chosen by norm and size if None) and the spec. Raises UsageError.

    system: over the domain that is asked about; domain: with one number per input of the network (`asked`).
    """
    chosen_domain, chosen = parse_domain(domain), parse_outputs(outputs)
    chosen.check(system.output.size)
    reason = ""
    if formulation is None:
        pair = norm_pair("2" if norm is None else norm)
        name, reason = _choose(
            system, Spec(input_norm=pair[0], output_norm=pair[1], domain=chosen_domain, outputs=chosen)
        )
        formulation = name
    instance = find_formulation(formulation, options)
    pair = norm_pair(instance.default_norm if norm is None else norm)
    spec = Spec(input_norm=pair[0], output_norm=pair[1], domain=chosen_domain, outputs=chosen)
    return Request(spec=spec, formulation=instance, reason=reason)


def _choose(system: IncrementSystem, spec: Spec) -> tuple[str, str]:
    """A formulation for the norm and the predicted size, and why."""
    p, q = measured(spec).norms
    where = f"--norm {p}:{q}"
    hard = (p, q) in HARD and min(system.input.size, system.output.size) > 1
    if system.neurons == 0 and not hard:
        kind = "linear" if isinstance(spec.domain, Global) else "affine on the domain"
        return "product", f"formulation product: the network is {kind}, so the norm of its Jacobian is the constant"
    if not provable(system):
        return "product", f"formulation product: {system.neurons} activations are too many for a matrix inequality"
    name = "lipsdp-neuron" if p in ("1", "2") and q in ("2", "inf") else "geolip"
    programs = (system.output.size if q == "inf" else 1) * (system.input.size if p == "1" else 1)
    if programs > MAX_PROGRAMS:
        return "product", f"formulation product: {where} would need {programs} programs (ask for geolip to solve them)"
    return name, f"formulation {name}: the tightest for {where} with {system.neurons} activations"
