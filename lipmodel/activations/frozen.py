"""Global slope intervals of the families with default parameters, as hexadecimal doubles rounded outward.

The test suite derives every entry again from the sympy expression of its family.
"""

from __future__ import annotations

GLOBAL_SLOPES: dict[str, tuple[str, str]] = {
    "Relu": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "LeakyRelu": ("0x1.47ae140000000p-7", "0x1.0000000000000p+0"),
    "PRelu": ("0x1.0000000000000p-2", "0x1.0000000000000p+0"),
    "Clip": ("0x1.0000000000000p+0", "0x1.0000000000000p+0"),
    "Abs": ("-0x1.0000000000000p+0", "0x1.0000000000000p+0"),
    "HardSigmoid": ("0x0.0p+0", "0x1.99999a0000000p-3"),
    "HardSwish": ("-0x1.0000000000000p-1", "0x1.8000000000000p+0"),
    "Elu": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Celu": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Selu": ("0x0.0p+0", "0x1.c212cc7ba98c0p+0"),
    "Sigmoid": ("0x0.0p+0", "0x1.0000000000000p-2"),
    "Tanh": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Softplus": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "LogSigmoid": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Softsign": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Atan": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Asinh": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Tanhshrink": ("0x0.0p+0", "0x1.0000000000000p+0"),
    "Erf": ("0x0.0p+0", "0x1.20dd750429b6ep+0"),
    "Gelu": ("-0x1.07fee57f1cd3cp-3", "0x1.20ffdcafe39a8p+0"),
    "GeluTanh": ("-0x1.082d849a669ebp-3", "0x1.2105b0934cd3ep+0"),
    "Swish": ("-0x1.98f11d6cef08cp-4", "0x1.198f11d6cef09p+0"),
    "Mish": ("-0x1.cce830f9bc267p-4", "0x1.16a7d0c455120p+0"),
    "Sin": ("-0x1.0000000000000p+0", "0x1.0000000000000p+0"),
    "Cos": ("-0x1.0000000000000p+0", "0x1.0000000000000p+0"),
}
