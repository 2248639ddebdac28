"""Activations by name: the frozen library, and what users register."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

from lipmodel.activations.spec import Activation
from lipmodel.errors import UsageError

_SAME = {"silu": "Swish", "logistic": "Sigmoid", "hardsilu": "HardSwish"}
"""Other names of a family."""

_WITH = {
    "quickgelu": ("Swish", {"beta": 1.702}),
    "relu6": ("Clip", {"min": 0.0, "max": 6.0}),
    "hardtanh": ("Clip", {"min": -1.0, "max": 1.0}),
    "hardshrink": ("Shrink", {"bias": 0.0}),
}
"""Names of a family with other defaults."""

_RENAMED = {("Swish", "alpha"): "beta", ("LeakyRelu", "slope"): "alpha", ("LeakyRelu", "negative_slope"): "alpha"}
"""(family, parameter): the parameter meant (ONNX calls the rate of Swish alpha)."""

_REGISTERED: dict[str, tuple[str, Any, dict[str, float]]] = {}
"""key: (name, sympy expression, parameters) of every registered activation."""


def activation(what: Any, /, **params: float | str) -> Activation:
    """The activation of an ONNX operator type, an alias, a registered name, or a sympy expression in one real variable.

    params: parameters by their ONNX names, taken as exactly the floats given; those left out have the ONNX default (a
    float32 there). Names are matched without regard to case, ``_`` and ``-``. Raises UsageError for an unknown name or
    parameter, and what `register` raises for an expression.
    """
    if isinstance(what, Activation):
        if params:
            raise UsageError(f"{what.label} has its parameters already; name the family instead")
        return what
    if not isinstance(what, str):
        return _derived(str(what), what, tuple(sorted(_numbers(str(what), params).items())))
    key = _key(what)
    if key in _REGISTERED:
        name, expression, defaults = _REGISTERED[key]
        values = _numbers(name, params)
        _known(name, values, defaults)
        return _derived(name, expression, tuple(sorted((defaults | values).items())))
    return _from_family(what, key, dict(params))


def register(name: str, expression: Any, *, aliases: tuple[str, ...] = (), **params: float) -> Activation:
    """Make an activation known by its sympy expression alone; slopes, breakpoints and limits are derived and proved.

    expression: in one real variable, of rational operations, powers, exp, log, sqrt, sin, cos, sinh, cosh, tanh,
    asinh, atan, erf, erfc, Abs, Min, Max, sign, Heaviside and Piecewise; a string is parsed by sympy. Floats in it
    are taken as the binary numbers they are. params: the values of its other symbols, which `activation(name,
    **params)` may change.

    Raises UsageError for a name in use by the library or an expression of more than one free symbol, and NotLipschitz
    with the reason where nothing can be proved. An activation that is Lipschitz on bounded intervals only is
    accepted; its `slopes` then refuses the intervals on which it is not.
    """
    from lipmodel.activations.branches import parsed

    expression = parsed(expression, params)
    values = _numbers(name, params)
    for given in (name, *aliases):
        if _is_built_in(_key(given)):
            raise UsageError(f"{given!r} is a name of the library; register the activation under another one")
    result = _derived(name, expression, tuple(sorted(values.items())))
    for given in (name, *aliases):
        _REGISTERED[_key(given)] = (name, expression, values)
    return result


def names() -> tuple[str, ...]:
    """The names of the library's families and of the registered activations."""
    from lipmodel.activations.families import FAMILIES

    return (*FAMILIES, *sorted({entry[0] for entry in _REGISTERED.values()}))


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


@lru_cache(maxsize=1)
def _families() -> dict[str, str]:
    from lipmodel.activations.families import FAMILIES

    return {_key(name): name for name in FAMILIES}


def _is_built_in(key: str) -> bool:
    return key in _families() or key in _SAME or key in _WITH or key == "softshrink"


def _from_family(what: str, key: str, params: dict[str, float | str]) -> Activation:
    from lipmodel.activations.families import FAMILIES

    name, fixed = _WITH.get(key, (_SAME.get(key) or _families().get(key, ""), {}))
    if key == "softshrink":
        params.setdefault("lambd", 0.5)
        name, fixed = "Shrink", {"bias": float(params["lambd"])}
    if name == "Gelu":
        approximate = params.pop("approximate", "none")
        if approximate not in ("none", "tanh"):
            raise UsageError(f"Gelu(approximate={approximate!r}): it is 'none' or 'tanh'")
        name = "GeluTanh" if approximate == "tanh" else name
    if not name:
        from difflib import get_close_matches

        near = get_close_matches(key, [*_families(), *_SAME, *_WITH, *_REGISTERED], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"unknown activation {what!r}{hint}")
    values = {_RENAMED.get((name, k), k): v for k, v in _numbers(name, params).items()}
    defaults = dict(FAMILIES[name].defaults)
    _known(name, values, defaults)
    return _built(name, tuple((defaults | fixed | values).items()))


@lru_cache(maxsize=4096)
def _built(name: str, params: tuple[tuple[str, float], ...]) -> Activation:
    from lipmodel.activations.families import FAMILIES
    from lipmodel.activations.frozen import GLOBAL_SLOPES

    family = FAMILIES[name]
    shape = family.build(**{k: Fraction(v) if math.isfinite(v) else v for k, v in params})
    stored = GLOBAL_SLOPES.get(name) if params == family.defaults else None
    return Activation(
        name=name,
        params=params,
        expression=family.expression,
        pieces=shape.pieces,
        joints=shape.joints,
        jumps=shape.jumps,
        frozen=None if stored is None else (float.fromhex(stored[0]), float.fromhex(stored[1])),
    )


@lru_cache(maxsize=256)
def _derived(name: str, expression: Any, params: tuple[tuple[str, float], ...]) -> Activation:
    from lipmodel.activations.derive import cross_check, derive

    shape = derive(expression, dict(params), name=name)
    result = Activation(name=name, params=params, expression=str(expression), pieces=shape.pieces, joints=shape.joints)
    cross_check(result, expression, dict(params))
    return result


def _numbers(name: str, params: dict[str, Any]) -> dict[str, float]:
    values = {}
    for key, value in params.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"{name}: the parameter {key}={value!r} is not a number") from None
        if not math.isfinite(number) and not (name == "Clip" and math.isinf(number)):
            raise UsageError(f"{name}: the parameter {key}={value!r} is not finite")
        values[key] = number
    return values


def _known(name: str, values: dict[str, float], defaults: dict[str, float]) -> None:
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        has = f"its parameters are {', '.join(defaults)}" if defaults else "it has none"
        raise UsageError(f"{name} has no parameter {', '.join(unknown)}; {has}")
