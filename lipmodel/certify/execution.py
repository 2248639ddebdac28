"""What a proved Lipschitz bound says about the network as float32 arithmetic executes it, on a box.

A bound L holds for the function f in real arithmetic. Let F(x) be what a runtime computes that executes the operators
of the ONNX file one by one in float32. Where |F(x) - f(x)| <= eps in the output norm for all float32 x in the box,

    |F(x) - F(y)| <= L |x - y| + 2 eps     for all float32 inputs x, y in the box,

and no quotient of F is bounded without the second term: relu(x + 2^24) - relu(2^24) is 1-Lipschitz, but in float32 it
jumps by 1 or 2 between neighbouring inputs. `float32_error` derives eps from the file by the arithmetic of
`execution_values.py`; writer and verifier call the same function, which has no floating point in its decisions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipmodel.certify.certificate import expect_keys, read_float
from lipmodel.certify.execution_graph import outputs
from lipmodel.certify.execution_values import PLACES
from lipmodel.certify.roots import sqrt_up
from lipmodel.errors import RefusedInput, Refuted, UsageError
from lipmodel.families import margin_rows, measured
from lipmodel.spec import Box, Outputs, Spec

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

STATEMENT = (
    "for all float32 inputs x, y in the box: |F(x) - F(y)| <= bound |x - y| + 2 eps, where F executes the operators of "
    "the file one by one in float32 (IEEE 754, every operation rounded to nearest; sums in any order, with or without "
    "fused multiply-add; a bias or a residual added within the sum or after it; subnormal numbers kept or replaced by "
    "zero), without algorithms that multiply or add differently (Winograd, Strassen, Fourier), formats such as TF32, "
    "or constants that are changed before they are used"
)


def float_execution(network: Network, spec: Spec) -> dict[str, Any]:
    """The block of a certificate about execution in float32. Raises UsageError, RefusedInput."""
    return {"format": "float32", "eps": float32_error(network, spec).hex(), "statement": STATEMENT}


def check_float_execution(network: Network, spec: Spec, bound: float | None, block: Any) -> float | None:
    """The eps of a block that is true, None where a certificate has none. Raises Refuted."""
    if block is None:
        return None
    where = "certificate.float_execution"
    expect_keys(block, {"format", "eps", "statement"}, where)
    if block["format"] != "float32" or block["statement"] != STATEMENT:
        raise Refuted(f"{where}: the format or the statement is not one that this verifier knows")
    if bound is None:
        raise Refuted(f"{where}: nothing follows without a bound")
    claimed = read_float(block["eps"], f"{where}.eps")
    try:
        needed = float32_error(network, spec)
    except (RefusedInput, UsageError) as error:
        raise Refuted(f"{where}: {error}") from None
    if claimed < needed:
        raise Refuted(f"{where}: eps = {claimed!r} is below {needed!r}, which the operators of the file give")
    return claimed


def float32_error(network: Network, spec: Spec) -> float:
    """The least double eps with |F(x) - f(x)| <= eps that the error analysis gives, in the output norm of the question.

    For margins F is the difference of two float32 numbers in real arithmetic, and eps covers each of them.
    Raises UsageError where the domain is no box, RefusedInput where an operator is not covered, with every such node.
    """
    if not isinstance(spec.domain, Box):
        raise UsageError(
            "--float32 needs a box (--domain box:LO:HI): rounding errors grow with the numbers, so that there is no "
            f"statement for all inputs of the domain {spec.domain}"
        )
    found = outputs(network, spec.domain)
    error = _chosen([int(e) for x in found for e in x.error.ravel()], spec.outputs)
    norm = measured(spec).output_norm
    if norm == "2":
        squared = sum(e * e for e in error)
    else:
        squared = (max(error, default=0) if norm == "inf" else sum(error)) ** 2
    return sqrt_up(Fraction(squared, 1 << 2 * PLACES))


def execution_line(spec: Spec, bound: float, eps: float) -> str:
    """A proved statement about execution in float32, in one line, its numbers rounded up."""
    from lipmodel.result import rounded

    p, q = spec.norms
    which = "" if spec.outputs.kind == "all" else f", outputs {spec.outputs}"
    right = f"{rounded(bound, up=True)} ‖x − y‖ + {rounded(2.0 * eps, up=True, digits=3)}"
    return f"executed in float32 ({p}→{q}{which}, {spec.domain}): ‖F(x) − F(y)‖ ≤ {right}"


def _chosen(error: list[int], which: Outputs) -> list[int]:
    """The errors of the numbers that are measured."""
    if which.kind == "all":
        return error
    which.check(len(error))
    if which.kind == "vector":
        return [error[i] for i in which.indices]
    return [error[which.indices[0]] + error[j] for j in margin_rows(which, len(error))]
