"""Certificates: what is written down so that a stranger can check a bound, and how it is read back, strictly.

    certificate = {schema, network, claim, formulation, upper: proof | null, lower: witness | null, assumptions,
                   float_execution: {format, eps, statement} | null}
    proof = {rule: "lmi", norms, t, g, s, bound}                    multipliers of the quadratic-constraint inequality
          | {rule: "product", norms, spectral, bound}               the product rule; claimed spectral norms as hints
          | {rule: "masked-product", ...}   the same on a box or ball, neurons that are affine there left where they are
          | {rule: ..., norms, ..., bound}                          others, each read by its own module, see `rules.py`
          | {rule: "largest", members: [{row, column, proof}], bound}   one proof per output row and/or input column

Floats are hexadecimal, so that they read back exactly. Unknown keys, unknown rules, duplicate keys and non-finite
numbers are refused. `formulation` is for the reader; no proof depends on it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lipmodel.certify.lmi import Multipliers
from lipmodel.errors import Refuted

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

SCHEMA = "lipmodel/certificate/1"
MAX_REPEATED = 100_000
"""Entries that a repeated value may stand for where the network does not say how many there are."""
Array = np.ndarray[Any, Any]


def hex_vector(values: Any) -> list[str]:
    """Hexadecimal floats; a vector with one repeated value is written once as ["*n", value]."""
    floats = [float(v) for v in values]
    if len(floats) > 3 and len(set(floats)) == 1:
        return [f"*{len(floats)}", floats[0].hex()]
    return [v.hex() for v in floats]


def read_vector(data: Any, where: str, size: int | None = None) -> Array:
    """The float64 vector behind `hex_vector`. Raises Refuted."""
    if not isinstance(data, list):
        raise Refuted(f"{where}: expected a list of hexadecimal floats")
    if len(data) == 2 and isinstance(data[0], str) and data[0].startswith("*"):
        count = data[0][1:]
        number = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else -1
        if number != size if size is not None else not 0 < number <= MAX_REPEATED:
            raise Refuted(f"{where}: {data[0][:40]!r} is not the expected number of entries ({size or 'not stated'})")
        return np.full(number, read_float(data[1], where))
    if size is not None and len(data) != size:
        raise Refuted(f"{where}: {len(data)} entries, expected {size}")
    return np.array([read_float(v, where) for v in data], dtype=np.float64)


def read_float(data: Any, where: str) -> float:
    """A finite double from its hexadecimal form. Raises Refuted."""
    if not isinstance(data, str) or not data.lstrip("-").startswith("0x"):
        raise Refuted(f"{where}: {data!r} is not a hexadecimal float")
    try:
        value = float.fromhex(data)
    except (ValueError, OverflowError):
        raise Refuted(f"{where}: {data!r} is not a hexadecimal float") from None
    if not math.isfinite(value):
        raise Refuted(f"{where}: {data!r} is not finite")
    return value


def lmi_proof(multipliers: Multipliers, norms: tuple[str, str], bound: float) -> dict[str, Any]:
    """The proof by multipliers."""
    return {
        "rule": "lmi",
        "norms": list(norms),
        "t": [hex_vector(t) for t in multipliers.t],
        "g": hex_vector(multipliers.g),
        "s": hex_vector(multipliers.s),
        "bound": bound.hex(),
    }


def product_proof(
    spectral: list[str], norms: tuple[str, str], bound: float, *, rule: str = "product"
) -> dict[str, Any]:
    """The proof by the product rule, with the spectral norms it claims (hexadecimal; "inf" claims nothing)."""
    return {"rule": rule, "norms": list(norms), "spectral": spectral, "bound": bound.hex()}


def largest_proof(parts: list[tuple[int | None, int | None, dict[str, Any]]], bound: float) -> dict[str, Any]:
    """The proof of a family: one proof per output row and input column."""
    listed = [{"row": row, "column": column, "proof": proof} for row, column, proof in parts]
    return {"rule": "largest", "members": listed, "bound": bound.hex()}


def network_named(network: Network) -> dict[str, Any]:
    """Which file a network is, and which of its graph inputs and outputs were chosen."""
    source = network.source
    chosen = {"graph_input": source.graph_input, "graph_output": source.graph_output}
    return {
        "sha256": source.sha256,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()},
    }


def certificate(
    *,
    network: Mapping[str, Any],
    spec: Mapping[str, Any],
    formulation: Mapping[str, Any],
    bound: float | None,
    upper: Mapping[str, Any] | None,
    lower_bound: float | None,
    lower: Mapping[str, Any] | None,
    assumptions: Sequence[Mapping[str, Any]],
    float_execution: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The whole certificate."""
    return {
        "schema": SCHEMA,
        "network": dict(network),
        "claim": {
            "semantics": "real",
            **spec,
            "bound": None if bound is None else bound.hex(),
            "lower_bound": None if lower_bound is None else lower_bound.hex(),
        },
        "formulation": dict(formulation),
        "upper": None if upper is None else dict(upper),
        "lower": None if lower is None else dict(lower),
        "assumptions": [dict(a) for a in assumptions],
        "float_execution": None if float_execution is None else dict(float_execution),
    }


def parse(text: str | bytes) -> Any:
    """JSON, with duplicate keys, NaN and infinities refused. Raises Refuted."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(k for k, _ in items)
        if len(counts) < len(items):
            raise Refuted(f"the certificate names {min(k for k, n in counts.items() if n > 1)!r} twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise Refuted(f"the certificate contains {name}, which is not a number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refuted(f"the certificate is not valid JSON: {error}") from None


def expect_keys(data: Any, keys: set[str], where: str) -> dict[str, Any]:
    """The mapping, if it has exactly these keys. Raises Refuted."""
    if not isinstance(data, dict):
        raise Refuted(f"{where}: expected an object, found {type(data).__name__}")
    missing, unknown = keys - data.keys(), data.keys() - keys
    if missing or unknown:
        parts = [f"missing {k!r}" for k in sorted(missing)] + [f"unknown key {k!r}" for k in sorted(unknown)]
        raise Refuted(f"{where}: " + ", ".join(parts))
    return data


def choice(data: Any, table: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
    """The checker of a rule. Raises Refuted for an unknown one."""
    rule = data.get("rule") if isinstance(data, dict) else None
    if not isinstance(rule, str) or rule not in table:
        raise Refuted(f"{where}: unknown rule {rule!r}; this verifier knows {', '.join(sorted(table))}")
    return table[rule]
