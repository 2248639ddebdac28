"""`verify`: does a certificate prove its claim about an ONNX file? Decided in exact arithmetic.

The inequality is rebuilt from the file, never from the formulation that found the multipliers. What is refused is
refused by raising `Refuted` with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lipmodel.certify.certificate import (
    SCHEMA,
    choice,
    expect_keys,
    network_named,
    parse,
    read_float,
)
from lipmodel.certify.execution import check_float_execution
from lipmodel.certify.kernel import Rejected, check_quotient
from lipmodel.certify.rules import ASSUMING, RULES, Subject
from lipmodel.certify.source import Source, source_of
from lipmodel.certify.stated import check_result
from lipmodel.errors import LipmodelError, RefusedInput, Refuted, UsageError
from lipmodel.families import chosen_outputs, measured
from lipmodel.network.graph import Network
from lipmodel.question import systems
from lipmodel.result import Result
from lipmodel.spec import Spec

CERTIFICATE_KEYS = {"schema", "network", "claim", "formulation", "upper", "lower", "assumptions", "float_execution"}
CLAIM_KEYS = {"semantics", "input_norm", "output_norm", "domain", "outputs", "bound", "lower_bound"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was verified: the bound (None if the certificate claims none), the lower bound, and what was assumed.

    chosen: the graph inputs and outputs that the claim is about, where the certificate chooses some of several.
    read_by: who read the network for the upper bound, the independent reader or the importer, and then why.
    float32_eps: the eps of the statement about execution in float32, None where the certificate makes none.
    """

    bound: float | None
    lower_bound: float | None
    assumptions: tuple[str, ...]
    spec: Spec
    sha256: str
    chosen: tuple[str, ...] = ()
    read_by: str = field(default="", compare=False)
    float32_eps: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "verified": True,
            "bound": self.bound,
            "lower_bound": self.lower_bound,
            "assumptions": list(self.assumptions),
            "spec": self.spec.to_json(),
            "sha256": self.sha256,
            "chosen": list(self.chosen),
            "read_by": self.read_by,
            "float32_eps": self.float32_eps,
        }


def verify(network: Any, certificate: Any) -> Verdict:
    """Check a certificate (or a result that contains one) against an ONNX file, in exact arithmetic.

    network: a path to the ONNX file, or a Network. certificate: a path, JSON text, a mapping, or a Result.
    Raises Refuted with the reason; RefusedInput where the network itself is refused.
    """
    result, data = _read(certificate)
    expect_keys(data, CERTIFICATE_KEYS, "certificate")
    if data["schema"] != SCHEMA:
        raise Refuted(f"certificate: schema {data['schema']!r}, expected {SCHEMA!r}")
    named = expect_keys(data["network"], {"sha256", "graph_input", "graph_output"}, "certificate.network")
    claim = expect_keys(data["claim"], CLAIM_KEYS, "certificate.claim")
    if claim["semantics"] != "real":
        raise Refuted(f"certificate.claim: semantics {claim['semantics']!r}, expected 'real'")
    try:
        spec = Spec.from_json(claim)
    except UsageError as error:
        raise Refuted(f"certificate.claim: {error}") from None
    if any(claim[key] != value for key, value in spec.to_json().items()):
        raise Refuted("certificate.claim: norms, outputs or domain are not in their canonical form")
    net = _network(network, named)
    if named["sha256"] != net.source.sha256:
        raise Refuted(
            f"the certificate is about another network: sha256 {named['sha256']!r}, the file has {net.source.sha256!r}"
        )
    if named != network_named(net):
        raise Refuted(
            "certificate.network: another graph_input or graph_output is chosen, or not in the canonical form"
        )
    try:
        if spec.domain.sized(net.input_size) != spec.domain:
            raise Refuted("certificate.claim: the domain is not in its canonical form")
        found = systems(net, spec.domain, spec.input_norm)
        system = chosen_outputs(found.system, spec.outputs)
        masked = None if found.masked is None else chosen_outputs(found.masked, spec.outputs)
    except UsageError as error:
        raise Refuted(f"certificate.claim: {error}") from None
    assumptions = _assumptions(data["assumptions"])
    source = source_of(net, spec, found.ranges)
    subject = Subject(
        system=system,
        p=spec.input_norm,
        q=measured(spec).output_norm,
        source=source,
        masked=masked,
        domain=spec.domain,
        terms=tuple(term for a in assumptions for term in a["terms"]),
    )
    bound = _upper(subject, data["upper"], claim["bound"], assumptions)
    lower = _lower(net, spec, source, data["lower"], claim["lower_bound"])
    if assumptions and data["float_execution"] is not None:
        raise Refuted("certificate.float_execution: nothing follows from a bound that rests on assumptions")
    eps = check_float_execution(net, spec, bound, data["float_execution"])
    if bound is not None and lower is not None and lower > bound:
        raise Refuted(f"the lower bound {lower!r} is above the bound {bound!r}")
    if result is not None:
        check_result(result, data, bound, lower, net)
    texts = tuple(a["statement"] for a in assumptions)
    chosen = tuple(
        f"{axis.replace('_', ' ')} {named[axis] if isinstance(named[axis], str) else ', '.join(named[axis])}"
        for axis in ("graph_input", "graph_output")
        if named[axis] is not None
    )
    return Verdict(
        bound=bound,
        lower_bound=lower,
        assumptions=texts,
        spec=spec,
        sha256=net.source.sha256,
        chosen=chosen,
        read_by=source.read_by,
        float32_eps=eps,
    )


def _read(certificate: Any) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The result that the certificate came in, if it did, and the certificate."""
    if isinstance(certificate, Result):
        certificate = certificate.to_json()
    if isinstance(certificate, bytes) or (isinstance(certificate, str) and certificate.lstrip().startswith("{")):
        certificate = parse(certificate)
    elif isinstance(certificate, str | os.PathLike):
        try:
            content = Path(certificate).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {certificate}: {error.strerror or error}") from error
        certificate = parse(content)
    elif isinstance(certificate, Mapping):
        try:
            certificate = parse(json.dumps(certificate, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refuted(f"the certificate is not plain JSON: {error}") from None
    result = certificate if isinstance(certificate, dict) and "certificate" in certificate else None
    inner = certificate if result is None else result["certificate"]
    if not isinstance(inner, dict):
        raise Refuted("no certificate: nothing was proved, or it was left out")
    return result, inner


def _network(network: Any, named: dict[str, Any]) -> Network:
    from lipmodel.network.doors import is_other, load

    if isinstance(network, Network):
        return network
    if is_other(network):
        return load(network)
    for key in ("graph_input", "graph_output"):
        value = named[key]
        fine = (
            value is None
            or isinstance(value, str)
            or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        )
        if not fine:
            raise Refuted(f"certificate.network: {key} must be null, a name or a list of names")
    try:
        return load(network, graph_input=named["graph_input"], graph_output=named["graph_output"])
    except UsageError as error:
        raise Refuted(f"certificate.network: {error}") from None
    except RefusedInput as error:
        if {reason.kind for reason in error.reasons} <= {"inputs", "outputs"}:
            raise Refuted(f"certificate.network: graph_input or graph_output does not fit the file: {error}") from None
        raise


def _upper(subject: Subject, proof: Any, stated: Any, assumptions: list[dict[str, Any]]) -> float | None:
    if proof is None:
        if stated is not None:
            raise Refuted("the certificate claims a bound without a proof")
        if assumptions:
            raise Refuted("the certificate lists assumptions that nothing uses")
        return None
    bound = read_float(stated, "certificate.claim.bound")
    where = "certificate.upper (with assumptions)" if assumptions else "certificate.upper"
    rule = choice(proof, ASSUMING if assumptions else RULES, where)
    try:
        proved = rule(subject, proof)
    except Rejected as rejected:
        raise Refuted(str(rejected)) from None
    if proved != bound:
        raise Refuted(f"the certificate claims {bound!r}, its proof is about {proved!r}")
    return bound


def _lower(net: Network, spec: Spec, source: Source, witness: Any, stated: Any) -> float | None:
    if witness is None:
        if stated is not None:
            raise Refuted("the certificate claims a lower bound without a witness")
        return None
    from lipmodel.lower.witness import Witness

    found = Witness.from_json(witness)
    if (found.p, found.q, str(found.outputs)) != (spec.input_norm, spec.output_norm, str(spec.outputs)):
        raise Refuted("certificate.lower: the witness answers another question")
    if not (spec.domain.contains(found.x, found.p) and spec.domain.contains(found.y, found.p)):
        raise Refuted("certificate.lower: a point of the witness lies outside the domain")
    lower = read_float(stated, "certificate.claim.lower_bound")
    if found.ratio != lower:
        raise Refuted(f"the certificate claims the lower bound {lower!r}, its witness {found.ratio!r}")
    if lower == 0.0:
        return lower
    if len(found.x) != net.input_size:
        raise Refuted(f"certificate.lower: the network has {net.input_size} inputs, not {len(found.x)}")
    if bool((found.x == found.y).all()):
        raise Refuted("certificate.lower: the two points of the witness are the same")
    try:
        check_quotient(*source.moduli(net, spec, found.x, found.y), found.p, measured(spec).output_norm, lower)
    except (LipmodelError, Rejected) as error:
        raise Refuted(f"certificate.lower: {error}") from None
    return lower


def _assumptions(data: Any) -> list[dict[str, Any]]:
    from lipmodel.certify.assumed import STATEMENT

    if not isinstance(data, list):
        raise Refuted("certificate.assumptions: expected a list")
    for k, a in enumerate(data):
        expect_keys(a, {"statement", "terms"}, f"certificate.assumptions[{k}]")
        if a["statement"] != STATEMENT or not isinstance(a["terms"], list):
            raise Refuted(f"certificate.assumptions[{k}]: the statement is not the one that the terms stand for")
    return list(data)
