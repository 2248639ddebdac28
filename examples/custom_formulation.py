"""A formulation of one's own: LipSDP with multipliers that are tied in groups of neighbouring neurons.

    lipmodel solve examples/digits.onnx -f examples/custom_formulation.py:GroupedLipSDP -o group=4

The class states which inequalities hold; it never sees a solver. Whatever point a solver returns, and whatever mistake
is made here, the bound that is printed is proved from the network file: a wrong sign or a forgotten multiplier can only
make it looser.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lipmodel as lm


class GroupedLipSDP(lm.Formulation):
    """LipSDP (Fazlyab et al. 2019, arXiv 1906.04893) with one multiplier for every `group` consecutive neurons."""

    name, norms = "grouped-lipsdp", {("2", "2")}

    group: int = lm.option(8, help="how many consecutive neurons share a multiplier")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Model:
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")  # rho |x|^2 and its price rho / 2
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            groups = np.arange(act.size) // self.group
            t = m.variable(f"t_{act.name}", int(groups.max()) + 1, nonnegative=True)
            spread = (groups[:, None] == np.arange(t.size)[None, :]).astype(float)  # every neuron reads its group's t
            form -= lm.qc.slope_restricted(act, spread @ t)
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("digits.onnx"))
    for group in (1, 4, 16, 32):
        result = lm.solve(path, GroupedLipSDP(group=group), time_limit=60)
        print(f"groups of {group:2d}: {result.sentence()}")
