"""What a result says beside its certificate must follow from the certificate and the network; all else is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from lipmodel.certify.certificate import expect_keys, read_float
from lipmodel.errors import Refuted
from lipmodel.families import row_labels
from lipmodel.network.graph import Network
from lipmodel.result import SCHEMA, describe, number
from lipmodel.spec import parse_outputs

KEYS = {
    "schema", "network", "spec", "formulation", "options", "backend", "bound", "assurance", "claim", "gap",
    "termination", "lower_bound", "exact", "per_output", "timings", "reason", "plan", "instead",
    "certificate",
}  # fmt: skip


def check_result(
    result: dict[str, Any], certificate: dict[str, Any], bound: float | None, lower: float | None, net: Network
) -> None:
    """Raise Refuted where a result states a proved quantity that its (verified) certificate does not give."""
    expect_keys({"plan": None, "instead": None, **result}, KEYS, "result")  # earlier versions wrote neither
    claim = certificate["claim"]
    expected: dict[str, Any] = {
        "schema": SCHEMA,
        "bound": number(math.inf if bound is None else bound),
        "lower_bound": lower,
        "exact": bound is not None and lower is not None and bound - lower <= 1e-9 * bound,
        "spec": {key: claim[key] for key in ("input_norm", "output_norm", "domain", "outputs")},
    }
    for key, value in expected.items():
        said = result[key]
        if said != value or isinstance(said, bool) != isinstance(value, bool):
            raise Refuted(f"the result says {key} = {said!r}, its certificate gives {value!r}")
    assured = {"model" if certificate["assumptions"] else "proved"} if bound is not None else {"none", "numeric"}
    if not isinstance(result["assurance"], str) or result["assurance"] not in assured:
        raise Refuted(
            f"the result says assurance {result['assurance']!r}, its certificate gives {' or '.join(assured)}"
        )
    facts = describe(net)
    said = expect_keys(result["network"], set(facts), "result.network")
    wrong = [key for key, value in facts.items() if key != "path" and _written(said[key]) != _written(value)]
    if wrong:
        raise Refuted(f"the result says network.{wrong[0]} = {said[wrong[0]]!r}, the file has {facts[wrong[0]]!r}")
    _check_rows(result["per_output"], certificate, net)


def _check_rows(listed: Any, certificate: dict[str, Any], net: Network) -> None:
    """The bounds per output are the largest that the certificate proves for that row."""
    if listed is None:
        return
    upper = certificate["upper"]
    rows: dict[int, float] = {}
    for member in upper["members"] if upper is not None and upper["rule"] == "largest" else []:
        if member["row"] is not None:
            value = read_float(member["proof"]["bound"], "proof.bound")
            rows[member["row"]] = max(value, rows.get(member["row"], 0.0))
    labels = row_labels(parse_outputs(certificate["claim"]["outputs"]), net.output_size)
    expected = [{"output": labels[row], "bound": rows[row], "lower_bound": None} for row in sorted(rows)]
    if not expected or _written(listed) != _written(expected):
        raise Refuted("the result lists bounds per output that its certificate does not prove")


def _written(value: Any) -> str:
    """The JSON form, which tells 1, 1.0 and true apart."""
    return json.dumps(value, sort_keys=True)
