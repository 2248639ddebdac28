"""The example of docs/certificate.md is what the page says it is."""

from __future__ import annotations

import json
import math
import pathlib
import re
from fractions import Fraction

import pytest

import lipmodel as lm
from lipmodel.certify.kernel import System, exact_lmi
from lipmodel.certify.lmi import Multipliers
from lipmodel.certify.rules import RULES
from lipmodel.cli import main
from lipmodel.network.increments import exact_system, increments

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
NETWORK = ROOT / "docs" / "examples" / "absolute.onnx"


def example() -> dict:
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    return json.loads(text)


def test_the_example_is_verified_as_the_page_prints_it(tmp_path, capsys):
    path = tmp_path / "absolute.json"
    path.write_text(json.dumps(example()))
    assert main(["verify", str(NETWORK), str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = PAGE[PAGE.index("$ lipmodel verify docs/examples") :].splitlines()[1:3]
    assert printed == [line.strip() for line in shown]


def test_the_matrix_and_its_pivots_are_those_of_the_page():
    system = exact_system(increments(lm.load(NETWORK)))
    assert isinstance(system, System)
    upper = example()["upper"]
    values = {key: [float.fromhex(v) for v in upper[key]] for key in ("g", "s")}
    p = exact_lmi(system, Multipliers(t=([float.fromhex(v) for v in upper["t"][0]],), **values))
    found = [[Fraction(0)] * 4 for _ in range(4)]
    starts = [0, 1, 3]
    for i, (diagonal, exponent) in enumerate(p.diagonal):
        for a, v in enumerate(diagonal):
            found[starts[i] + a][starts[i] + a] += Fraction(v) / Fraction(2) ** exponent
    for (i, j), block in p.blocks.items():
        for a, row in enumerate(block.mantissa):
            for b, v in enumerate(row):
                found[starts[i] + a][starts[j] + b] += Fraction(v, 2**block.exponent)
                found[starts[j] + b][starts[i] + a] = found[starts[i] + a][starts[j] + b]
    shown = PAGE[PAGE.index("P =   ") + len("P =   ") :].splitlines()[:4]
    stated = [[Fraction(word.replace("−", "-")) for word in line.split()] for line in shown]
    assert found == stated
    order, pivots = [1, 2, 0, 3], []
    m = [[found[a][b] for b in order] for a in order]
    for k in range(4):
        pivots.append(m[k][k])
        for i in range(k + 1, 4):
            factor = m[i][k] / m[k][k]
            m[i] = [a - factor * b for a, b in zip(m[i], m[k], strict=True)]
    assert pivots == [4, 4, Fraction(1, 4), Fraction(1, 2)]


def test_one_unit_less_of_anything_is_refused_as_the_page_says():
    data = example()
    below = math.nextafter(1.5, 0.0).hex()
    data["claim"]["bound"] = data["upper"]["bound"] = below
    with pytest.raises(lm.Refuted, match="below what its multipliers give"):
        lm.verify(NETWORK, data)
    for g in (2.0, math.nextafter(2.0, 0.0), 1.75):
        data = example()
        data["upper"]["g"] = [g.hex()]
        with pytest.raises(lm.Refuted, match="fails, or is too close"):
            lm.verify(NETWORK, data)
    data = example()
    data["claim"]["lower_bound"] = data["lower"]["ratio"] = math.nextafter(1.0, 2.0).hex()
    with pytest.raises(lm.Refuted, match=r"certificate\.lower"):
        lm.verify(NETWORK, data)


def test_every_rule_and_every_key_is_on_the_page():
    data = example()
    for name in (*RULES, *data, *data["claim"], *data["upper"], *data["lower"], *data["network"]):
        assert f"`{name}`" in PAGE, name
