"""lipmodel: certified Lipschitz constants of neural networks.

    import lipmodel as lm
    r = lm.solve("net.onnx", "geolip", norm="inf:2")
    print(r.lower_bound, r.bound, r.assurance)

Public names are imported when they are first used, so that `import lipmodel` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "lipmodel.network.onnx_import",
    "from_weights": "lipmodel.network.sources",
    "Network": "lipmodel.network.graph",
    "IncrementSystem": "lipmodel.network.increments",
    "increments": "lipmodel.network.increments",
    "activation": "lipmodel.activations",
    "Activation": "lipmodel.activations",
    "register_operator": "lipmodel.network.onnx_import",
    "Spec": "lipmodel.spec",
    "NORMS": "lipmodel.spec",
    "dual": "lipmodel.spec",
    "Formulation": "lipmodel.formulation",
    "option": "lipmodel.formulation",
    "Model": "lipmodel.model.model",
    "Signal": "lipmodel.model.forms",
    "LinearForm": "lipmodel.model.forms",
    "QuadraticForm": "lipmodel.model.forms",
    "Variable": "lipmodel.model.variables",
    "Expression": "lipmodel.model.variables",
    "inner": "lipmodel.model.model",
    "NormExpression": "lipmodel.model.norm_expression",
    "Multipliers": "lipmodel.certify.lmi",
    "Result": "lipmodel.result",
    "solve": "lipmodel.pipeline",
    "build": "lipmodel.pipeline",
    "export": "lipmodel.pipeline",
    "verify": "lipmodel.certify.verify",
    "register_backend": "lipmodel.backends",
    "LipmodelError": "lipmodel.errors",
    "UsageError": "lipmodel.errors",
    "RefusedInput": "lipmodel.errors",
    "NotLipschitz": "lipmodel.errors",
    "BackendUnavailable": "lipmodel.errors",
    "NothingProved": "lipmodel.errors",
    "Refuted": "lipmodel.errors",
    "SoundnessError": "lipmodel.errors",
}
_MODULES = {"qc": "lipmodel.model.qc", "norms": "lipmodel.model.norm_expression"}
_RENAMED = {"register_activation": ("lipmodel.activations", "register")}

__all__ = ["__version__", *_PUBLIC, *_MODULES, *_RENAMED]

if TYPE_CHECKING:
    from lipmodel.activations import Activation, activation
    from lipmodel.activations import register as register_activation
    from lipmodel.backends import register_backend
    from lipmodel.certify.lmi import Multipliers
    from lipmodel.certify.verify import verify
    from lipmodel.errors import (
        BackendUnavailable,
        LipmodelError,
        NothingProved,
        NotLipschitz,
        RefusedInput,
        Refuted,
        SoundnessError,
        UsageError,
    )
    from lipmodel.formulation import Formulation, option
    from lipmodel.model import norm_expression as norms
    from lipmodel.model import qc
    from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
    from lipmodel.model.model import Model, inner
    from lipmodel.model.norm_expression import NormExpression
    from lipmodel.model.variables import Expression, Variable
    from lipmodel.network.graph import Network
    from lipmodel.network.increments import IncrementSystem, increments
    from lipmodel.network.onnx_import import load, register_operator
    from lipmodel.network.sources import from_weights
    from lipmodel.pipeline import build, export, solve
    from lipmodel.result import Result
    from lipmodel.spec import NORMS, Spec, dual


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _RENAMED:
        module, attribute = _RENAMED[name]
        value = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module 'lipmodel' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
