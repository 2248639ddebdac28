"""Relaxations on bounded domains that know which slopes the inputs there can have."""

from __future__ import annotations

from typing import ClassVar

import lipmodel as lm


class Shor(lm.Formulation):
    """SHOR (Chen, Lasserre, Magron & Pauwels 2020, arXiv 2002.03657): GeoLIP with biases, on a box or a ball.

    Maximise t'W1'diag(s)w over directions t, inputs x of the domain and slopes s_j at the ends of their intervals with
    (s_j - (alpha_j + beta_j)/2) (W1 x + b1 - kink)_j >= 0: one moment matrix of [1, x, s, t], and numbers for the
    inequalities. Neurons whose pre-activation is not affine in x, or that have more than one kink, keep any slope in
    their interval; so do all on the whole space, where this is GeoLIP for one hidden layer.
    """

    name, default_norm = "shor", "inf"
    norms: ClassVar = {("inf", "1"), ("2", "1")}
    largest: int = lm.option(0, help="order of the moment matrix up to which it is solved; 0: what takes seconds")

    def build(self, system: lm.IncrementSystem, spec: lm.Spec) -> lm.Evidence:
        return lm.reachability(system, spec, level=self.name, largest=self.largest)


class HR1(Shor):
    """HR-1 of the same paper: SHOR, and every pre-activation stays within its range, (z_j - m_j)^2 <= r_j^2."""

    name = "hr1"


class HR2(Shor):
    """HR-2 of the same paper: HR-1, and moment matrices of order two of {s_j, z_j} and {x_i, t_i}, with localising
    ones for the sides of the kinks and the ranges; z_j is tied to x by z_j = (W1 x + b1)_j, times 1 and s_j, and by
    the squares of both sides.
    """

    name = "hr2"
