"""`verify`: does a certificate prove its claim about an ONNX file? Decided in exact arithmetic.

The inequality is rebuilt from the file, never from the formulation that found the multipliers. What is refused is
refused by raising `Refuted` with the reason.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lipmodel.certify.certificate import (
    SCHEMA,
    choice,
    expect_keys,
    network_named,
    parse,
    read_float,
    read_vector,
)
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.stated import check_result
from lipmodel.errors import LipmodelError, RefusedInput, Refuted, UsageError
from lipmodel.families import Member, chosen_outputs, measured, restricted
from lipmodel.network.graph import Network
from lipmodel.network.increments import IncrementSystem, exact_system, increments
from lipmodel.result import Result
from lipmodel.spec import Norm, Spec, as_norm

CERTIFICATE_KEYS = {"schema", "network", "claim", "formulation", "upper", "lower", "assumptions"}
CLAIM_KEYS = {"semantics", "input_norm", "output_norm", "domain", "outputs", "bound", "lower_bound"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was verified: the bound (None if the certificate claims none), the lower bound, and what was assumed.

    chosen: the graph inputs and outputs that the claim is about, where the certificate chooses some of several.
    """

    bound: float | None
    lower_bound: float | None
    assumptions: tuple[str, ...]
    spec: Spec
    sha256: str
    chosen: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "verified": True,
            "bound": self.bound,
            "lower_bound": self.lower_bound,
            "assumptions": list(self.assumptions),
            "spec": self.spec.to_json(),
            "sha256": self.sha256,
            "chosen": list(self.chosen),
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
        system = chosen_outputs(increments(net), spec.outputs)
    except UsageError as error:
        raise Refuted(f"certificate.claim: {error}") from None
    assumptions = _assumptions(data["assumptions"])
    bound = _upper(system, spec, data["upper"], claim["bound"], assumptions)
    lower = _lower(net, spec, data["lower"], claim["lower_bound"])
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
        bound=bound, lower_bound=lower, assumptions=texts, spec=spec, sha256=net.source.sha256, chosen=chosen
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
        except (TypeError, ValueError) as error:
            raise Refuted(f"the certificate is not plain JSON: {error}") from None
    result = certificate if isinstance(certificate, dict) and "certificate" in certificate else None
    inner = certificate if result is None else result["certificate"]
    if not isinstance(inner, dict):
        raise Refuted("no certificate: nothing was proved, or it was left out")
    return result, inner


def _network(network: Any, named: dict[str, Any]) -> Network:
    from lipmodel.network.onnx_import import load

    if isinstance(network, Network):
        return network
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


def _upper(
    system: IncrementSystem, spec: Spec, proof: Any, stated: Any, assumptions: list[dict[str, Any]]
) -> float | None:
    if proof is None:
        if stated is not None:
            raise Refuted("the certificate claims a bound without a proof")
        if assumptions:
            raise Refuted("the certificate lists assumptions that nothing uses")
        return None
    bound = read_float(stated, "certificate.claim.bound")
    q = measured(spec).output_norm
    if assumptions:
        checker = partial(choice(proof, {"lmi": _lmi}, "certificate.upper (with assumptions)"), assumptions=assumptions)
    else:
        checker = partial(choice(proof, {"lmi": _lmi, "product": _product, "largest": _largest}, "certificate.upper"))
    proved = checker(system, spec.input_norm, q, proof)
    if proved != bound:
        raise Refuted(f"the certificate claims {bound!r}, its proof is about {proved!r}")
    return bound


def _pair(proof: dict[str, Any], p: Norm, q: Norm, inputs: int, outputs: int) -> tuple[Norm, Norm]:
    """The norm pair of a proof, if it is the one asked for (any, on a side with one entry)."""
    norms = proof["norms"]
    if not isinstance(norms, list) or len(norms) != 2 or any(n not in ("1", "2", "inf") for n in norms):
        raise Refuted(f"proof: norms {norms!r} are not a pair of norms")
    a, b = as_norm(norms[0]), as_norm(norms[1])
    if (a != p and inputs != 1) or (b != q and outputs != 1):
        raise Refuted(f"proof: it is about L({a}→{b}), the claim about L({p}→{q})")
    return a, b


def _lmi(
    system: IncrementSystem, p: Norm, q: Norm, proof: dict[str, Any], assumptions: Sequence[dict[str, Any]] = ()
) -> float:
    from lipmodel.certify.kernel import check_lmi

    expect_keys(proof, {"rule", "norms", "t", "g", "s", "bound"}, "proof")
    pair = _pair(proof, p, q, system.input.size, system.output.size)
    if not isinstance(proof["t"], list) or len(proof["t"]) != len(system.activations):
        raise Refuted(f"proof.t: expected one list for each of the {len(system.activations)} activations")
    t = tuple(
        read_vector(v, f"proof.t[{k}]", a.size)
        for k, (v, a) in enumerate(zip(proof["t"], system.activations, strict=True))
    )
    g = read_vector(proof["g"], "proof.g", system.input.size)
    s = read_vector(proof["s"], "proof.s", system.output.size)
    bound = read_float(proof["bound"], "proof.bound")
    multipliers = Multipliers(t=t, g=g, s=s)
    if assumptions:
        from lipmodel.certify.assumed import check_assuming

        terms = [term for a in assumptions for term in a["terms"]]
        check_assuming(system, multipliers, pair[0], pair[1], bound, terms)
    else:
        check_lmi(exact_system(system), multipliers, pair[0], pair[1], bound)
    return bound


def _product(system: IncrementSystem, p: Norm, q: Norm, proof: dict[str, Any]) -> float:
    from lipmodel.certify.product_rule import check_product, product_system

    expect_keys(proof, {"rule", "norms", "spectral", "bound"}, "proof")
    pair = _pair(proof, p, q, system.input.size, system.output.size)
    if not isinstance(proof["spectral"], list):
        raise Refuted("proof.spectral: expected a list of hexadecimal floats")
    claims = [math.inf if v == "inf" else read_float(v, "proof.spectral") for v in proof["spectral"]]
    bound = read_float(proof["bound"], "proof.bound")
    check_product(product_system(system), pair[0], pair[1], bound, claims)
    return bound


def _largest(system: IncrementSystem, p: Norm, q: Norm, proof: dict[str, Any]) -> float:
    """Every row (q = inf) and/or every column (p = 1), each with a proof of its own."""
    expect_keys(proof, {"rule", "members", "bound"}, "proof")
    listed = proof["members"]
    if not isinstance(listed, list) or not listed:
        raise Refuted("proof.members: expected a list of proofs")
    members = [expect_keys(m, {"row", "column", "proof"}, f"proof.members[{k}]") for k, m in enumerate(listed)]
    for axis, size, norm, needed in (("row", system.output.size, q, "inf"), ("column", system.input.size, p, "1")):
        for m in members:
            index = m[axis]
            if index is not None and (isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size):
                raise Refuted(f"proof.members: {axis} {index!r} does not exist")
            if index is not None and norm != needed:
                raise Refuted(f"proof.members: single {axis}s prove nothing for the norm {norm}")
    by_row = members[0]["row"] is not None
    by_column = members[0]["column"] is not None
    if not by_row and not by_column:
        raise Refuted("proof.members: neither rows nor columns")
    rows: list[int | None] = list(range(system.output.size)) if by_row else [None]
    columns: list[int | None] = list(range(system.input.size)) if by_column else [None]
    found = [(m["row"], m["column"]) for m in members]
    expected = {(r, c) for r in rows for c in columns}
    if len(found) != len(set(found)) or set(found) != expected:
        raise Refuted("proof.members: the rows and columns are not each covered exactly once")
    bound = read_float(proof["bound"], "proof.bound")
    for m in members:
        part = restricted(system, Member(row=m["row"], column=m["column"], norms=(p, q)))
        checker = choice(m["proof"], {"lmi": _lmi, "product": _product}, "proof.members")
        value = checker(part, p, q, m["proof"])
        if value > bound:
            raise Refuted(f"the bound {bound!r} is below that of row {m['row']}, column {m['column']}: {value!r}")
    return bound


def _lower(net: Network, spec: Spec, witness: Any, stated: Any) -> float | None:
    if witness is None:
        if stated is not None:
            raise Refuted("the certificate claims a lower bound without a witness")
        return None
    from lipmodel.lower.witness import Witness, witness_ratio

    found = Witness.from_json(witness)
    if (found.p, found.q, str(found.outputs)) != (spec.input_norm, spec.output_norm, str(spec.outputs)):
        raise Refuted("certificate.lower: the witness answers another question")
    lower = read_float(stated, "certificate.claim.lower_bound")
    if found.ratio != lower:
        raise Refuted(f"the certificate claims the lower bound {lower!r}, its witness {found.ratio!r}")
    if lower == 0.0:
        return lower
    try:
        ratio = witness_ratio(net, found.x, found.y, found.p, found.q, found.outputs)
    except (UsageError, LipmodelError) as error:
        raise Refuted(f"certificate.lower: {error}") from None
    if not ratio >= lower > 0.0:
        raise Refuted(f"the witness pair proves {ratio!r}, not {lower!r}")
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
