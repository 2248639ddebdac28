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
    "load": "lipmodel.network.doors",
    "from_weights": "lipmodel.network.sources",
    "Network": "lipmodel.network.graph",
    "IncrementSystem": "lipmodel.network.increments",
    "increments": "lipmodel.network.increments",
    "activation": "lipmodel.activations",
    "Activation": "lipmodel.activations",
    "register_operator": "lipmodel.network.onnx_import",
    "Spec": "lipmodel.spec",
    "NORMS": "lipmodel.spec",
    "Ball": "lipmodel.spec",
    "Box": "lipmodel.spec",
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
    "SecondOrder": "lipmodel.model.sets",
    "RotatedSecondOrder": "lipmodel.model.sets",
    "NormExpression": "lipmodel.model.norm_expression",
    "Multipliers": "lipmodel.certify.lmi",
    "State": "lipmodel.rounds",
    "Evidence": "lipmodel.certify.evidence",
    "Proved": "lipmodel.certify.evidence",
    "Polynomial": "lipmodel.model.polynomials",
    "PolynomialProgram": "lipmodel.model.polynomials",
    "network_polynomials": "lipmodel.model.polynomials",
    "network_values": "lipmodel.relaxations.values",
    "Krivine": "lipmodel.relaxations.evidence",
    "SumOfSquares": "lipmodel.relaxations.evidence",
    "MetricChain": "lipmodel.metric_chains",
    "fourier_multipliers": "lipmodel.fourier.evidence",
    "estimate": "lipmodel.estimates",
    "Estimate": "lipmodel.estimates",
    "ESTIMATES": "lipmodel.estimates",
    "Result": "lipmodel.result",
    "solve": "lipmodel.pipeline",
    "build": "lipmodel.pipeline",
    "export": "lipmodel.exporting",
    "compare": "lipmodel.comparison",
    "Comparison": "lipmodel.comparison",
    "certify_solution": "lipmodel.foreign",
    "sign_relaxation": "lipmodel.relaxations.signs",
    "reachability": "lipmodel.relaxations.reachable",
    "verify": "lipmodel.certify.verify",
    "register_backend": "lipmodel.backends",
    "to_native": "lipmodel.backends",
    "LipmodelError": "lipmodel.errors",
    "UsageError": "lipmodel.errors",
    "RefusedInput": "lipmodel.errors",
    "NotLipschitz": "lipmodel.errors",
    "BackendUnavailable": "lipmodel.errors",
    "NothingProved": "lipmodel.errors",
    "Refuted": "lipmodel.errors",
    "SoundnessError": "lipmodel.errors",
}
_MODULES = {
    "qc": "lipmodel.model.qc",
    "norms": "lipmodel.model.norm_expression",
    "elimination": "lipmodel.elimination",
}
_RENAMED = {"register_activation": ("lipmodel.activations", "register")}

__all__ = ["__version__", *_PUBLIC, *_MODULES, *_RENAMED]

if TYPE_CHECKING:
    from lipmodel import elimination as elimination
    from lipmodel.activations import Activation as Activation
    from lipmodel.activations import activation as activation
    from lipmodel.activations import register as register_activation  # noqa: F401
    from lipmodel.backends import register_backend as register_backend
    from lipmodel.backends import to_native as to_native
    from lipmodel.certify.evidence import Evidence as Evidence
    from lipmodel.certify.evidence import Proved as Proved
    from lipmodel.certify.lmi import Multipliers as Multipliers
    from lipmodel.certify.verify import verify as verify
    from lipmodel.comparison import Comparison as Comparison
    from lipmodel.comparison import compare as compare
    from lipmodel.errors import BackendUnavailable as BackendUnavailable
    from lipmodel.errors import LipmodelError as LipmodelError
    from lipmodel.errors import NothingProved as NothingProved
    from lipmodel.errors import NotLipschitz as NotLipschitz
    from lipmodel.errors import RefusedInput as RefusedInput
    from lipmodel.errors import Refuted as Refuted
    from lipmodel.errors import SoundnessError as SoundnessError
    from lipmodel.errors import UsageError as UsageError
    from lipmodel.estimates import ESTIMATES as ESTIMATES
    from lipmodel.estimates import Estimate as Estimate
    from lipmodel.estimates import estimate as estimate
    from lipmodel.exporting import export as export
    from lipmodel.foreign import certify_solution as certify_solution
    from lipmodel.formulation import Formulation as Formulation
    from lipmodel.formulation import option as option
    from lipmodel.fourier.evidence import fourier_multipliers as fourier_multipliers
    from lipmodel.metric_chains import MetricChain as MetricChain
    from lipmodel.model import norm_expression as norms  # noqa: F401
    from lipmodel.model import qc as qc
    from lipmodel.model.forms import LinearForm as LinearForm
    from lipmodel.model.forms import QuadraticForm as QuadraticForm
    from lipmodel.model.forms import Signal as Signal
    from lipmodel.model.model import Model as Model
    from lipmodel.model.model import inner as inner
    from lipmodel.model.norm_expression import NormExpression as NormExpression
    from lipmodel.model.polynomials import Polynomial as Polynomial
    from lipmodel.model.polynomials import PolynomialProgram as PolynomialProgram
    from lipmodel.model.polynomials import network_polynomials as network_polynomials
    from lipmodel.model.sets import RotatedSecondOrder as RotatedSecondOrder
    from lipmodel.model.sets import SecondOrder as SecondOrder
    from lipmodel.model.variables import Expression as Expression
    from lipmodel.model.variables import Variable as Variable
    from lipmodel.network.doors import load as load
    from lipmodel.network.graph import Network as Network
    from lipmodel.network.increments import IncrementSystem as IncrementSystem
    from lipmodel.network.increments import increments as increments
    from lipmodel.network.onnx_import import register_operator as register_operator
    from lipmodel.network.sources import from_weights as from_weights
    from lipmodel.pipeline import build as build
    from lipmodel.pipeline import solve as solve
    from lipmodel.relaxations.evidence import Krivine as Krivine
    from lipmodel.relaxations.evidence import SumOfSquares as SumOfSquares
    from lipmodel.relaxations.reachable import reachability as reachability
    from lipmodel.relaxations.signs import sign_relaxation as sign_relaxation
    from lipmodel.relaxations.values import network_values as network_values
    from lipmodel.result import Result as Result
    from lipmodel.rounds import State as State
    from lipmodel.spec import NORMS as NORMS
    from lipmodel.spec import Ball as Ball
    from lipmodel.spec import Box as Box
    from lipmodel.spec import Spec as Spec
    from lipmodel.spec import dual as dual


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
