"""Our own format, .model.json: a model as it was stated, with its factors, sets and rules, every number exact.

Signals, activations, variables, linear maps and linear forms are listed once and meant by their numbers; floats are
hexadecimal. Reading gives a model that is equal to the one that was written, down to which forms are shared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import numpy as np

from lipmodel.errors import LipmodelError
from lipmodel.io.fields import Fields, read_json
from lipmodel.io.maps import MapWriter, csr_json, csr_of, hex_floats, read_maps
from lipmodel.io.sidecar import Kind
from lipmodel.io.text import Malformed, refusing
from lipmodel.model import sets
from lipmodel.model.forms import LinearForm, QuadraticForm, Role, Signal
from lipmodel.model.model import Constraint, Model
from lipmodel.model.terms import Coefficients, Congruence, Factored, Rule, Term, Triplets
from lipmodel.model.variables import Expression, Variable
from lipmodel.network.increments import SlopeRestricted
from lipmodel.spec import NORMS

Array = np.ndarray[Any, Any]
SCHEMA = "lipmodel/model/1"

_FORM_SETS = {cls.__name__: cls for cls in get_args(sets.FormSet)}
_VECTOR_SETS = {cls.__name__: cls for cls in get_args(sets.VectorSet)}


def model_bytes(model: Model, header: Mapping[str, Any] | None = None) -> bytes:
    """The file; header: what is said about the model's origin (JSON values), which readers ignore."""
    content = _Writer(model).content(header or {})
    return (
        "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items()) + "\n}\n"
    ).encode()


def _lines(value: Any) -> str:
    """A value as JSON, a list with one line per entry."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in value) + "\n]"


@dataclass(slots=True, eq=False)
class _Writer:
    model: Model
    maps: MapWriter = field(default_factory=MapWriter)
    forms: list[dict[str, Any]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    activations: list[SlopeRestricted] = field(default_factory=list)
    _forms: dict[int, tuple[LinearForm, int]] = field(default_factory=dict)

    def content(self, header: Mapping[str, Any]) -> dict[str, Any]:
        m = self.model
        self.signals = list(m.signals)
        constraints = [self.constraint(c) for c in m.constraints]
        objective = None if m.objective is None else self.expression(m.objective)
        activations = [self.activation(a) for a in self.activations]
        return {
            "schema": SCHEMA,
            "origin": dict(header),
            "name": m.name,
            "bound": m.bound,
            "signals": [{"name": s.name, "size": s.size} for s in self.signals],
            "stated_signals": len(m.signals),
            "variables": [
                {"name": v.name, "size": v.size, "nonnegative": v.nonnegative, "order": v.order} for v in m.variables
            ],
            "maps": self.maps.written,
            "forms": self.forms,
            "activations": activations,
            "constraints": constraints,
            "objective": objective,
        }

    def signal(self, signal: Signal) -> int:
        if signal not in self.signals:
            self.signals.append(signal)
        return self.signals.index(signal)

    def form(self, form: LinearForm) -> int:
        if id(form) not in self._forms:
            blocks = [[self.signal(s), self.maps.number(m)] for s, m in form.blocks.items()]
            self._forms[id(form)] = (form, len(self.forms))
            self.forms.append({"size": form.size, "role": form.role, "blocks": blocks})
        return self._forms[id(form)][1]

    def activation(self, a: SlopeRestricted) -> dict[str, Any]:
        return {
            "name": a.name,
            "signal": self.signal(a.signal),
            "pre": self.form(a.pre),
            "post": self.form(a.post),
            "alpha": hex_floats(a.alpha),
            "beta": hex_floats(a.beta),
            "groups": None if a.groups is None else a.groups.tolist(),
            "gains": {norm: hex_floats(gain) for norm, gain in a.gains.items()},
        }

    def expression(self, e: Expression) -> dict[str, Any]:
        terms = [{"variable": self.model.variables.index(v), "matrix": csr_json(k)} for v, k in e.coefficients.items()]
        return {"size": e.size, "constant": hex_floats(e.constant), "terms": terms}

    def constraint(self, c: Constraint) -> dict[str, Any]:
        stated = {"set": type(c.set).__name__, **{f.name: getattr(c.set, f.name) for f in fields(c.set)}}
        if isinstance(c.set, sets.SparsePSD) and not isinstance(c.set.cliques, str):
            stated["cliques"] = [[self.signal(s) for s in clique] for clique in c.set.cliques]
        if isinstance(c.function, Expression):
            return {**stated, "expression": self.expression(c.function)}
        return {**stated, "terms": [self.term(t) for t in c.function.terms]}

    def term(self, term: Term) -> dict[str, Any]:
        rule = self.rule(term.rule)
        if isinstance(term, Factored):
            sides = {"left": self.form(term.left), "right": self.form(term.right)}
            return {"kind": "factored", "rule": rule, **sides, "weight": self.expression(term.weight)}
        if isinstance(term, Congruence):
            return {
                "kind": "congruence",
                "rule": rule,
                "form": self.form(term.form),
                "matrix": self.model.variables.index(term.matrix),
                "scale": float(term.scale).hex(),
                "weights": None if term.weights is None else hex_floats(term.weights),
            }
        entries = [self.triplets(t) for t in term.triplets()]
        return {"kind": "coefficients", "rule": rule, "entries": entries}

    def triplets(self, t: Triplets) -> dict[str, Any]:
        return {
            "block": [self.signal(s) for s in t.block],
            "row": t.row.tolist(),
            "col": t.col.tolist(),
            "variable": None if t.variable is None else self.model.variables.index(t.variable),
            "index": t.index.tolist(),
            "value": hex_floats(t.value),
        }

    def rule(self, rule: Rule | None) -> dict[str, Any] | None:
        if rule is None or rule.kind in ("pair", "pair-cone"):  # what they are about is in the map, not in the model
            return None
        subject = rule.subject
        if isinstance(subject, SlopeRestricted):
            if subject not in self.activations:
                self.activations.append(subject)
            return {"kind": rule.kind, "activation": self.activations.index(subject), "signal": None}
        signal = self.signal(subject) if isinstance(subject, Signal) else None
        return {"kind": rule.kind, "activation": None, "signal": signal}


def read_model(path: str | os.PathLike[str]) -> Model:
    """A model in .model.json, gzipped or not. Raises UsageError."""
    try:
        data = read_json(path, limit=None)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise Malformed(f"its schema is {schema!r:.60}, not {SCHEMA!r}")
        return _Reader.of(Fields(data)).model(Fields(data))
    except (Malformed, OSError, MemoryError, LipmodelError) as error:
        raise refusing(path, "a model", error) from None


@dataclass(slots=True, eq=False)
class _Reader:
    signals: list[Signal]
    variables: list[Variable]
    forms: list[LinearForm]
    activations: list[SlopeRestricted]

    @classmethod
    def of(cls, top: Fields) -> _Reader:
        signals = [Signal(name=i.get("name", str), size=i.count("size", least=1)) for i in top.items("signals")]
        variables = []
        for item in top.items("variables"):
            order, size = item.get("order", int, type(None)), item.count("size", least=1)
            if order is not None and 2 * size != order * (order + 1):
                raise Malformed(f"{item.where}order does not fit its size")
            name = item.get("name", str)
            variables.append(Variable(name=name, size=size, nonnegative=item.get("nonnegative", bool), order=order))
        maps = read_maps(list(top.items("maps")))
        forms = []
        for item in top.items("forms"):
            size = item.count("size", least=1)
            blocks = {}
            for pair in item.get("blocks", list):
                number, of = Fields({"pair": pair}, item.where).whole_numbers("pair", 2).tolist()
                if number >= len(signals) or of >= len(maps) or maps[of].shape != (size, signals[number].size):
                    raise Malformed(f"{item.where}blocks does not fit its signals and maps")
                blocks[signals[number]] = maps[of]
            role = item.get("role", str, type(None))
            if role not in (None, *get_args(Role)):
                raise Malformed(f"{item.where}role is none")
            forms.append(LinearForm(size=size, blocks=blocks, role=role))
        reader = cls(signals=signals, variables=variables, forms=forms, activations=[])
        reader.activations = [reader.activation(item) for item in top.items("activations")]
        return reader

    def model(self, top: Fields) -> Model:
        stated = top.count("stated_signals", below=len(self.signals) + 1)
        objective = top.get("objective", dict, type(None))
        model = Model(
            top.get("name", str),
            signals=self.signals[:stated],
            variables=self.variables,
            constraints=[self.constraint(item) for item in top.items("constraints")],
            bound=top.choice("bound", ("identity", "sqrt")),
        )
        if objective is not None:
            model.objective = self.expression(top.inner("objective"), 1)
        return model

    def one(self, item: Fields, key: str, of: list[Any]) -> Any:
        return of[item.count(key, below=len(of))]

    def activation(self, item: Fields) -> SlopeRestricted:
        signal = self.one(item, "signal", self.signals)
        pre, post = self.one(item, "pre", self.forms), self.one(item, "post", self.forms)
        if not pre.size == post.size == signal.size:
            raise Malformed(f"{item.where}pre, post and signal have different sizes")
        gains = item.inner("gains")
        if not set(gains.data) <= set(NORMS):
            raise Malformed(f"{gains.where[:-1]} is not by norms")
        grouped = item.get("groups", list, type(None)) is not None
        return SlopeRestricted(
            name=item.get("name", str),
            signal=signal,
            pre=pre,
            post=post,
            alpha=item.hex_floats("alpha", signal.size),
            beta=item.hex_floats("beta", signal.size),
            groups=item.whole_numbers("groups", signal.size) if grouped else None,
            gains={norm: gains.hex_floats(norm, signal.size) for norm in gains.data},
        )

    def expression(self, item: Fields, size: int | None = None) -> Expression:
        own = item.count("size", least=1)
        if size is not None and own != size:
            raise Malformed(f"{item.where}size is {own}, not {size}")
        coefficients = {}
        for term in item.items("terms"):
            v = self.one(term, "variable", self.variables)
            coefficients[v] = csr_of(term.inner("matrix"), (own, v.size))
        return Expression(size=own, coefficients=coefficients, constant=item.hex_floats("constant", own))

    def constraint(self, item: Fields) -> Constraint:
        kinds: dict[str, Any] = _FORM_SETS if "terms" in item.data else _VECTOR_SETS
        cls = kinds[item.choice("set", list(kinds))]
        settings = {f.name: self.setting(item, f.name) for f in fields(cls)}
        if "terms" in item.data:
            return Constraint(
                function=QuadraticForm(terms=tuple(map(self.term, item.items("terms")))), set=cls(**settings)
            )
        return Constraint(function=self.expression(item.inner("expression")), set=cls(**settings))

    def setting(self, item: Fields, key: str) -> Any:
        value = item.get(key, bool, int, str, list, type(None))
        if key == "cliques" and isinstance(value, list):
            groups = [Fields({"clique": g}, item.where).whole_numbers("clique", below=len(self.signals)) for g in value]
            return tuple(tuple(self.signals[i] for i in group.tolist()) for group in groups)
        allowed: dict[str, Any] = {"cliques": value == "auto", "merge": type(value) is bool}
        if not allowed.get(key, value is None or (type(value) is int and value > 0)):
            raise Malformed(f"{item.where}{key} is of the wrong kind")
        return value

    def term(self, item: Fields) -> Term:
        kind = item.choice("kind", ("factored", "congruence", "coefficients"))
        rule = None if item.get("rule", dict, type(None)) is None else self.rule(item.inner("rule"))
        if kind == "factored":
            left, right = self.one(item, "left", self.forms), self.one(item, "right", self.forms)
            return Factored(weight=self.expression(item.inner("weight"), left.size), left=left, right=right, rule=rule)
        if kind == "congruence":
            matrix = self.one(item, "matrix", self.variables)
            scale = float(Fields({"scale": [item.get("scale", str)]}, item.where).hex_floats("scale", 1)[0])
            weights = None if item.data.get("weights") is None else item.hex_floats("weights", matrix.size)
            form = self.one(item, "form", self.forms)
            return Congruence(form=form, matrix=matrix, scale=scale, rule=rule, weights=weights)
        return Coefficients(entries=tuple(map(self.triplets, item.items("entries"))), rule=rule)

    def triplets(self, item: Fields) -> Triplets:
        block = item.whole_numbers("block", 2, below=len(self.signals)).tolist()
        a, b = (self.signals[i] for i in block)
        row = item.whole_numbers("row", below=a.size)
        col = item.whole_numbers("col", len(row), below=b.size)
        if a is b and np.any(row < col):
            raise Malformed(f"{item.where}row and col are not of the lower triangle")
        given = item.get("variable", int, type(None))
        variable = None if given is None else self.one(item, "variable", self.variables)
        low, high = (-1, 0) if variable is None else (0, variable.size)
        index = item.whole_numbers("index", len(row), least=low, below=high)
        value = item.hex_floats("value", len(row))
        return Triplets(block=(a, b), row=row, col=col, variable=variable, index=index, value=value)

    def rule(self, item: Fields) -> Rule:
        kind = item.choice("kind", get_args(Kind))
        subject: Any = None
        if item.get("activation", int, type(None)) is not None:
            subject = self.one(item, "activation", self.activations)
        elif item.get("signal", int, type(None)) is not None:
            subject = self.one(item, "signal", self.signals)
        if (kind == "slope") != isinstance(subject, SlopeRestricted):
            raise Malformed(f"{item.where}activation: a slope restriction is about one, and nothing else is")
        return Rule(kind=kind, subject=subject)
