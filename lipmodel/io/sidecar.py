"""The map beside a solver file: what its numbers mean, and all that leads a solution of it to a bound.

    y (model) = factor * sign * v, where v is the vector that `solution` names
    objective (model) = scale * objective (file) + offset; bound = objective, or its square root (bound: "sqrt")

`multipliers` holds the weights of the model's terms that follow a rule, as affine functions of the variables: what is
proved from a solution is the network's own inequality with these weights, so that neither the formulation nor the map
is trusted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from lipmodel.errors import LipmodelError, UsageError
from lipmodel.io.fields import Fields, read_json
from lipmodel.io.text import Malformed, refusing
from lipmodel.model.terms import Factored
from lipmodel.model.variables import Expression, Variable
from lipmodel.spec import NORMS, Norm, Spec

if TYPE_CHECKING:
    from lipmodel.bridges.program import ConeProgram
    from lipmodel.io.formats import Form, Format
    from lipmodel.model.model import BoundMap, Model

Array = np.ndarray[Any, Any]
SCHEMA = "lipmodel/map/2"
Kind = Literal["ball-input", "ball-dual", "slope", "output-dual", "output-output"]


def problem_map(
    model: Model,
    program: ConeProgram | None,
    factors: Mapping[Variable, Array],
    unit: float,
    *,
    file: str,
    format: Format,
    form: Form,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """The map as JSON values.

    model: as it was stated; program: what the file holds, its cost divided by `unit` (None: the model itself); factors:
    by which the file's numbers are multiplied to become the model's; header: network, spec, formulation, member.
    """
    variables, start = [], 0
    for v in model.variables:
        variables.append(
            {
                "name": v.name,
                "offset": start,
                "size": v.size,
                "order": v.order,
                "nonnegative": v.nonnegative,
                "factor": _short(factors[v]) if v in factors else 1.0,
            }
        )
        start += v.size
    terms = [term for form_ in model.matrix_constraints for term in form_.terms]
    factored = [term for term in terms if isinstance(term, Factored) and term.rule is not None]
    ruled = [term for term in factored if term.rule is not None and term.rule.kind not in ("pair", "pair-cone")]
    objective = model.objective
    assert objective is not None
    vector, sign = format.returned(form)
    return {
        "schema": SCHEMA,
        "file": file,
        "format": format.name,
        "form": form,
        **header,
        "objective": {
            "sense": "minimise",
            "scale": unit,
            "offset": 0.0 if program is None else program.offset,
            "bound": model.bound,
            "expression": _expression(objective),
        },
        "solution": {"vector": vector, "size": start if program is None else program.size, "sign": sign},
        "variables": variables,
        "blocks": [] if program is None else _blocks(program),
        "multipliers": [_weight(term) for term in ruled],
        "pairs": [_pairs(term) for term in factored if term.rule is not None and term.rule.kind == "pair"],
        "own_terms": len(terms) - len(factored),
    }


def map_text(data: Any, indent: str = "") -> str:
    """A map as JSON, lists of numbers and names on one line."""
    inner = f"{indent} "
    if isinstance(data, dict) and data:
        items = [f"{inner}{json.dumps(key)}: {map_text(value, inner)}" for key, value in data.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return "[\n" + ",\n".join(inner + map_text(item, inner) for item in data) + f"\n{indent}]"
    return json.dumps(data, allow_nan=False)


def _short(values: Any) -> Any:
    """A vector as JSON; one number where all are the same."""
    vector = np.asarray(values, dtype=np.float64)
    same = vector.size > 0 and bool(np.all(vector == vector[0]))
    return float(vector[0]) if same else vector.tolist()


def _expression(e: Expression) -> dict[str, Any]:
    terms = {}
    for v, k in e.coefficients.items():
        coo = sp.coo_array(k)
        rows, columns = coo.coords
        terms[v.name] = {"rows": rows.tolist(), "columns": columns.tolist(), "values": coo.data.tolist()}
    return {"constant": _short(e.constant), "terms": terms}


def _weight(term: Factored) -> dict[str, Any]:
    assert term.rule is not None
    subject = term.rule.subject.name if term.rule.kind == "slope" else None
    return {"rule": term.rule.kind, "activation": subject, "weight": _expression(term.weight)}


def _pairs(term: Factored) -> dict[str, Any]:
    assert term.rule is not None
    subject = term.rule.subject
    return {
        "neurons": [{"activation": a.name, "index": i} for couple in subject.couples for a, i in couple],
        "weight": _expression(term.weight),
        "stated": _expression(subject.weight),
        "plain": _expression(subject.plain),
        "flipped": _expression(subject.flipped),
    }


def _blocks(program: ConeProgram) -> list[dict[str, Any]]:
    """What the rows of the program are about, in its order."""
    blocks: list[dict[str, Any]] = [
        {
            "kind": "psd",
            "order": block.order,
            "signals": [{"name": s.name, "offset": at, "size": s.size} for s, at in block.offsets.items()],
        }
        for block in program.psd
    ]
    blocks += [{"kind": "rsoc" if s.rotated else "soc", "order": s.matrix.shape[0]} for s in program.soc]
    for kind, matrix in (("nonnegative", program.ineq), ("zero", program.eq)):
        if matrix.shape[0]:
            blocks.append({"kind": kind, "order": matrix.shape[0]})
    return blocks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """The weight of a term that follows a rule: read when the sizes of the network's vectors are known."""

    kind: Kind
    activation: str | None
    weight: Fields


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """The weights of pairs of neurons, listed by (name of the activation, number): see `lm.qc.pairs`."""

    neurons: tuple[tuple[str, int], ...]
    weight: Fields
    stated: Fields
    plain: Fields
    flipped: Fields


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Link:
    """A map that was read: of its right shape, and not otherwise trusted.

    sha256, graph_input, graph_output: of the network; norms: of the program; factors (one or one per entry), offsets:
    by variable; size, sign, vector: of the vector that a solver returns; scale, offset, bound, objective: what its
    optimum means; own: how many terms followed no rule; pairs: the terms of pairs of neurons.
    """

    path: str
    file: str
    form: str
    sha256: str
    graph_input: Any
    graph_output: Any
    spec: Spec
    formulation: str
    options: Mapping[str, Any]
    norms: tuple[Norm, Norm]
    variables: tuple[Variable, ...]
    factors: Mapping[Variable, Array]
    offsets: Mapping[Variable, int]
    size: int
    sign: float
    vector: str
    scale: float
    offset: float
    bound: BoundMap
    objective: Fields
    weights: tuple[Weight, ...]
    own: int
    pairs: tuple[Pairs, ...] = ()


def read_map(path: str | os.PathLike[str]) -> Link:
    """A map file. Raises UsageError where it cannot be read or is not one."""
    try:
        data = read_json(path)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise Malformed(f"its schema is {schema!r:.60}, not {SCHEMA!r}")
        return _link(os.fspath(path), Fields(data))
    except (Malformed, OSError, MemoryError) as error:
        raise refusing(path, "a map", error) from None


def _link(path: str, top: Fields) -> Link:
    network, stated, objective = top.inner("network"), top.inner("formulation"), top.inner("objective")
    solution = top.inner("solution")
    try:
        spec = Spec.from_json(top.get("spec", dict))
    except (LipmodelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"spec: {error}") from None
    norms = top.inner("member").get("norms", list)
    if len(norms) != 2 or any(norm not in NORMS for norm in norms):
        raise Malformed("member.norms is not a pair of norms")
    variables, factors, offsets, start = [], {}, {}, 0
    for item in top.items("variables"):
        order = item.get("order", int, type(None))
        name, size = item.get("name", str), item.count("size")
        v = Variable(name=name, size=size, nonnegative=item.get("nonnegative", bool), order=order)
        if item.count("offset") != start or (order is not None and 2 * size != order * (order + 1)):
            raise Malformed(f"{item.where}offset or order does not fit")
        variables.append(v)
        offsets[v], factors[v] = start, item.floats("factor", size)
        start += size
    if len({v.name for v in variables}) != len(variables) or start > solution.count("size"):
        raise Malformed("its variables do not fit its solution")
    return Link(
        path=path,
        file=top.get("file", str),
        form=top.choice("form", ("geometric", "standard")),
        sha256=network.get("sha256", str),
        graph_input=_names(network, "graph_input"),
        graph_output=_names(network, "graph_output"),
        spec=spec,
        formulation=_printable(stated, "name"),
        options=stated.get("options", dict),
        norms=(norms[0], norms[1]),
        variables=tuple(variables),
        factors=factors,
        offsets=offsets,
        size=solution.count("size"),
        sign=solution.number("sign"),
        vector=solution.choice("vector", ("x", "y")),
        scale=objective.number("scale"),
        offset=objective.number("offset"),
        bound=objective.choice("bound", ("identity", "sqrt")),
        objective=objective.inner("expression"),
        weights=tuple(
            Weight(
                kind=item.choice("rule", get_args(Kind)),
                activation=item.get("activation", str, type(None)),
                weight=item.inner("weight"),
            )
            for item in top.items("multipliers")
        ),
        own=top.count("own_terms"),
        pairs=tuple(
            Pairs(
                neurons=tuple((n.get("activation", str), n.get("index", int)) for n in item.items("neurons")),
                weight=item.inner("weight"),
                stated=item.inner("stated"),
                plain=item.inner("plain"),
                flipped=item.inner("flipped"),
            )
            for item in (top.items("pairs") if "pairs" in top.data else ())
        ),
    )


def _printable(stated: Fields, key: str) -> str:
    """A name that is shown in the answer."""
    name: str = stated.get(key, str)
    if not (name.isprintable() and 0 < len(name) <= 200):
        raise Malformed(f"{stated.where}{key} is no name")
    return name


def _names(network: Fields, key: str) -> Any:
    value = network.get(key, str, list, type(None))
    if isinstance(value, list) and not all(isinstance(name, str) for name in value):
        raise Malformed(f"network.{key} is not a list of names")
    return value


def expression_of(link: Link, data: Fields, size: int) -> Expression:
    """An expression of the map, of the size that its place asks for. Raises UsageError where it does not fit."""
    by_name = {v.name: v for v in link.variables}
    coefficients = {}
    try:
        constant = data.floats("constant", size)
        terms = data.inner("terms")
        for name in terms.data:
            if name not in by_name:
                raise Malformed(f"{terms.where}{name[:40]} is no variable of the map")
            v, item = by_name[name], terms.inner(name)
            rows = item.whole_numbers("rows", below=size)
            columns = item.whole_numbers("columns", len(rows), below=v.size)
            values = np.broadcast_to(item.floats("values", len(rows)), (len(rows),))
            coefficients[v] = sp.csr_array((values, (rows, columns)), shape=(size, v.size))
    except Malformed as error:
        raise UsageError(f"{link.path} does not fit the network: {error}") from None
    return Expression(size=size, coefficients=coefficients, constant=np.array(np.broadcast_to(constant, (size,))))


def values_of(link: Link, vector: Array) -> dict[Variable, Array]:
    """The model's variables from the vector of a solution, shape (link.size,). Raises UsageError for another shape."""
    if np.shape(vector) != (link.size,):
        raise UsageError(f"the solution has shape {np.shape(vector)}; {link.path} is about {link.size} numbers")
    v_ = link.sign * np.asarray(vector, dtype=np.float64)
    return {v: link.factors[v] * v_[link.offsets[v] : link.offsets[v] + v.size] for v in link.variables}
