"""The activations that tests go through: families with parameters, Lipschitz everywhere or on intervals only."""

from __future__ import annotations

from typing import Any

from lipmodel.activations import activation

LIPSCHITZ: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": -2.0}),
    ("PRelu", {"slope": 1.7}),
    ("ThresholdedRelu", {"alpha": 0.0}),
    ("Clip", {"min": -1.0, "max": 2.5}),
    ("Clip", {"max": 0.3}),
    ("Clip", {"min": 2.0, "max": -1.0}),
    ("Abs", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": -0.3, "beta": 0.1}),
    ("HardSigmoid", {"alpha": 0.0, "beta": 2.0}),
    ("HardSwish", {}),
    ("Softshrink", {"lambd": 0.7}),
    ("Elu", {}),
    ("Elu", {"alpha": 2.0}),
    ("Elu", {"alpha": -0.5}),
    ("Celu", {}),
    ("Celu", {"alpha": 0.03}),
    ("Selu", {}),
    ("Selu", {"alpha": 0.5, "gamma": -2.0}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("Softplus", {}),
    ("LogSigmoid", {}),
    ("Softsign", {}),
    ("Atan", {}),
    ("Asinh", {}),
    ("Tanhshrink", {}),
    ("Erf", {}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("Swish", {}),
    ("QuickGelu", {}),
    ("Swish", {"beta": -0.7}),
    ("Swish", {"beta": 1000.0}),
    ("Mish", {}),
    ("Sin", {}),
    ("Cos", {}),
]
LOCAL: list[tuple[str, dict[str, Any]]] = [
    ("Exp", {}),
    ("Log", {}),
    ("Sqrt", {}),
    ("Reciprocal", {}),
    *(("Pow", {"exponent": e}) for e in (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 2.5, -0.5)),
    ("ThresholdedRelu", {"alpha": 1.0}),
    ("HardShrink", {}),
    ("Sign", {}),
    ("Floor", {}),
    ("Round", {}),
]


def label(case: Any) -> str:
    return case if isinstance(case, str) else activation(case[0], **case[1]).label
