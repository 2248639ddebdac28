"""GeoLIP with triangle inequalities."""

from __future__ import annotations

from typing import ClassVar

import lipmodel as lm


class GeoLIPTriangle(lm.Formulation):
    """GeoLIP (Wang, Prakriya & Jha 2022, arXiv 2203.01212) over signs, with triangle inequalities as cutting planes.

    A slope is c + r u with a sign u, so the constant over all slopes is the largest value of a polynomial in signs:
    s'J(u) for the norm inf, with signs s of the inputs, |J(u)|^2 for the norm 2. One hidden layer makes it quadratic;
    the signs of further layers, and of several outputs in the l1 norm, multiply those of the inputs. The moment matrix
    of these products is GeoLIP's, and on small networks the triangle inequalities (Deza & Laurent 1997) make it exact.
    """

    name, default_norm = "geolip-triangle", "inf"
    norms: ClassVar = {("inf", "1"), ("2", "1")}
    rounds: int = lm.option(20, help="rounds in which violated triangle inequalities join; 0: GeoLIP itself")

    largest: int = lm.option(64, help="order of the moment matrix up to which it is solved; 100 takes minutes")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Evidence:
        return lm.sign_relaxation(system, spec, rounds=self.rounds, largest=self.largest)
