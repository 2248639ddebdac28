"""Models that are chains of living layers with a multiplier per neuron, as `ChainProblem`: the fastest elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.backends.native.chain import ChainProblem, all_alive
from lipmodel.model.model import Model
from lipmodel.model.terms import Factored
from lipmodel.model.variables import Expression, Variable

Array = np.ndarray[Any, Any]


class NotAChain(Exception):  # noqa: N818 - control flow: another form of elimination takes the model
    """Why a model is not a chain."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelChain:
    """A model read as min c'eta subject to the chain's inequality with output slack one."""

    problem: ChainProblem
    t: tuple[Variable, ...]
    kappa: Variable
    sigma: Variable | None
    price_in: float
    price_out: float

    def objective(self, value: float) -> float:
        """The model's objective where the constant's square is `value`; the free scale between both ends is optimal."""
        if self.sigma is None:
            return self.price_in * value
        return 2.0 * float(np.sqrt(self.price_in * self.price_out * value))

    def values(self, t: tuple[Array, ...], eta: Array, value: float) -> dict[Variable, Array]:
        # (kappa, t, sigma) and (c kappa, c t, sigma / c) are equally feasible: c balances the two prices.
        c = (
            1.0
            if self.sigma is None or not 0.0 < value < float("inf")
            else float(np.sqrt(self.price_out / (self.price_in * value)))
        )
        values = {v: c * np.asarray(x) for v, x in zip(self.t, t, strict=True)}
        values[self.kappa] = c * np.asarray(eta[:1] if self.kappa.size == 1 else eta)
        if self.sigma is not None:
            values[self.sigma] = np.array([1.0 / c])
        return values


def _stored(m: Any, *, dense: bool = False) -> Any:
    center = m.enclosure().center
    if sp.issparse(center) and (dense or center.nnz > 0.2 * center.shape[0] * center.shape[1]):
        return np.asarray(center.toarray())
    return center


def read_chain(model: Model) -> ModelChain:
    """The chain behind a model. Raises NotAChain."""
    if len(model.constraints) != 1 or len(model.psd_forms) != 1:
        raise NotAChain("it has constraints besides one matrix inequality")
    by_kind: dict[str, list[Factored]] = {}
    for term in model.matrix_constraints[0].terms:
        if term.rule is None or not isinstance(term, Factored):
            raise NotAChain("it has a term stated by hand, which follows no rule")
        by_kind.setdefault(term.rule.kind, []).append(term)
    for kind, terms in by_kind.items():
        if kind != "slope" and len(terms) > 1:
            raise NotAChain(f"it has {len(terms)} terms of the kind {kind}")
    slopes = by_kind.get("slope", [])
    if not slopes:
        raise NotAChain("it has no quadratic constraint of an activation")
    activations = tuple(term.rule.subject for term in slopes if term.rule is not None)
    t = tuple(_own_variable(term.weight, -2.0, "multipliers") for term in slopes)
    if len(set(t)) != len(t):
        raise NotAChain("it shares multipliers between activations")
    if "ball-input" not in by_kind:
        raise NotAChain("it has no ball on the input")
    ball = by_kind["ball-input"][0]
    _check_chain(activations, next(iter(ball.left.blocks)))
    kappa = _ball_variable(ball.weight)
    sigma, output = _output(by_kind)
    if list(output.blocks) != [activations[-1].signal]:
        raise NotAChain("the output reads more than the last activation (a branch or a skip connection)")
    price_in, price_out = _prices(model, kappa, sigma)
    problem = ChainProblem(
        weights=tuple(_stored(next(iter(a.pre.blocks.values()))) for a in activations),
        alpha=tuple(a.alpha for a in activations),
        beta=tuple(a.beta for a in activations),
        output=_stored(next(iter(output.blocks.values())), dense=True),
        input_norm="2" if kappa.size == 1 else "inf",
    )
    if not all_alive(problem):
        raise NotAChain("some of its inputs or neurons lie on no path to the output")
    return ModelChain(
        problem=problem,
        t=t,
        kappa=kappa,
        sigma=sigma,
        price_in=price_in,
        price_out=price_out,
    )


def _check_chain(activations: tuple[Any, ...], source: Any) -> None:
    before = source
    for activation in activations:
        if list(activation.pre.blocks) != [before]:
            raise NotAChain(f"activation {activation.name!r} does not read just the layer before it: not a chain")
        before = activation.signal


def _own_variable(weight: Expression, factor: float, what: str) -> Variable:
    """The variable v with weight = factor * v entry by entry."""
    if np.any(weight.constant) or len(weight.coefficients) != 1:
        raise NotAChain(f"its {what} are not plain variables")
    variable, k = next(iter(weight.coefficients.items()))
    if k.shape != (variable.size, variable.size) or (k - factor * sp.eye_array(variable.size)).count_nonzero():
        raise NotAChain(f"its {what} are tied or combined")
    return variable


def _ball_variable(weight: Expression) -> Variable:
    """The variable of a ball: one number for all entries, or one per entry."""
    if np.any(weight.constant) or len(weight.coefficients) != 1:
        raise NotAChain("a ball has a weight that is not a plain variable")
    variable, k = next(iter(weight.coefficients.items()))
    plain = sp.csr_array(np.ones((weight.size, 1))) if variable.size == 1 else sp.csr_array(sp.eye_array(variable.size))
    if k.shape != plain.shape or (k - plain).count_nonzero():
        raise NotAChain("a ball has weights that are tied or combined")
    return variable


def _output(by_kind: dict[str, list[Factored]]) -> tuple[Variable | None, Any]:
    if "output-output" in by_kind:
        term = by_kind["output-output"][0]
        if "output-dual" in by_kind or term.weight.coefficients or np.any(term.weight.constant != -1.0):
            raise NotAChain("its output term is not minus the square of the output")
        return None, term.left
    if "output-dual" not in by_kind or "ball-dual" not in by_kind:
        raise NotAChain("it has no output term")
    term = by_kind["output-dual"][0]
    if term.weight.coefficients or np.any(term.weight.constant != -2.0):
        raise NotAChain("its coupling with the output is not -2 dual'output")
    sigma = _ball_variable(by_kind["ball-dual"][0].weight)
    if sigma.size != 1:
        raise NotAChain("an l1 output of several entries is beyond this version")
    return sigma, term.right if term.left.role == "dual" else term.left


def _prices(model: Model, kappa: Variable, sigma: Variable | None) -> tuple[float, float]:
    """Objective coefficients of the sum of kappa and of sigma."""
    objective = model.objective
    if objective is None or np.any(objective.constant):
        raise NotAChain("its objective has a constant")
    prices: dict[Variable, float] = {}
    for v, k in objective.coefficients.items():
        row = np.asarray(k.todense()).ravel()
        if np.any(row != row[0]) or (row[0] != 0.0 and v is not kappa and v is not sigma):
            raise NotAChain("its objective is not a price on the input ball and on the dual ball")
        prices[v] = float(row[0])
    price_in, price_out = prices.get(kappa, 0.0), 0.0 if sigma is None else prices.get(sigma, 0.0)
    if price_in <= 0.0 or (sigma is not None and price_out <= 0.0):
        raise NotAChain("its objective leaves one of the balls without a price")
    return price_in, price_out
