"""Formulations with mistakes, as a user's file might hold them; test_adversarial_formulations.py says what they do."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

import lipmodel as lm


class Base(lm.Formulation):
    """LipSDP by default; every subclass makes one mistake in one of the steps."""

    name, norms = "base", {("2", "2")}

    def build(self, system, spec):
        m = lm.Model("mine")
        form, price = self.ends(m, system)
        for act in system.activations:
            form = self.layer(m, form, act)
        self.finish(m, form, price)
        return m

    def ends(self, m, system):
        ball, price = m.ball(system.input, "2")
        return ball - lm.inner(system.output, system.output), price

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, m.multiplier(act))

    def finish(self, m, form, price):
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")


class Right(Base):
    name = "right"


class WrongSign(Base):
    name = "wrong-sign"

    def layer(self, m, form, act):
        return form + lm.qc.slope_restricted(act, m.multiplier(act))


class Forgotten(Base):
    name = "forgotten"

    def layer(self, m, form, act):
        return form if act.name.endswith("2") else super().layer(m, form, act)


class AllForgotten(Base):
    name = "all-forgotten"

    def layer(self, m, form, act):
        return form


class FreeSign(Base):
    name = "free-sign"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, m.variable("t", act.size))


class OneForAll(Base):
    name = "one-for-all"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, 1e-3)


class NegativeWeight(Base):
    name = "negative-weight"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, -m.multiplier(act))


class FalseSlopes(Base):
    name = "false-slopes"

    def layer(self, m, form, act):
        return super().layer(m, form, dataclasses.replace(act, beta=0.1 * act.beta))


class WrongNorm(Base):
    name, norms = "wrong-norm", {("inf", "2")}


class WrongNorms(Base):
    name, norms = "wrong-norms", {("inf", "1")}


class WrongDual(Base):
    name, norms = "wrong-dual", {("2", "1")}

    def ends(self, m, system):
        dual = m.signal("dual", system.output.size)
        ball_in, price_in = m.ball(system.input, "2")
        ball_out, price_out = m.ball(dual, "2")
        return ball_in + ball_out - 2 * lm.inner(dual, system.output), price_in + price_out

    def finish(self, m, form, price):
        m.require(form >= 0)
        m.minimize(price)


class HalfCoupling(WrongDual):
    name, norms = "half-coupling", {("2", "2")}

    def ends(self, m, system):
        dual = m.signal("dual", system.output.size)
        ball_in, price_in = m.ball(system.input, "2")
        ball_out, price_out = m.ball(dual, "2")
        return ball_in + ball_out - 0.01 * lm.inner(dual, system.output), price_in + price_out


class NoCoupling(WrongDual):
    name, norms = "no-coupling", {("2", "2")}

    def ends(self, m, system):
        dual = m.signal("dual", system.output.size)
        ball_in, price_in = m.ball(system.input, "2")
        ball_out, price_out = m.ball(dual, "2")
        return ball_in + ball_out, price_in + price_out


class TwoDuals(WrongDual):
    name, norms = "two-duals", {("2", "2")}

    def ends(self, m, system):
        form, price = super().ends(m, system)
        more, other = super().ends(m, system)
        return form + more, price + other


class WrongPrice(Base):
    name = "wrong-price"

    def finish(self, m, form, price):
        m.require(form >= 0)
        m.minimize(1e-4 * price, bound="sqrt")


class NegativePrice(Base):
    name = "negative-price"

    def finish(self, m, form, price):
        m.require(form >= 0)
        m.minimize(-price, bound="sqrt")


class WrongSet(Base):
    name = "wrong-set"

    def finish(self, m, form, price):
        m.require(form <= 0)
        m.minimize(2 * price, bound="sqrt")


class Contradiction(Base):
    name = "contradiction"

    def finish(self, m, form, price):
        m.require(price >= 1)
        m.require(price <= -1)
        super().finish(m, form, price)


class Capped(Base):
    name = "capped"

    def finish(self, m, form, price):
        m.require(price <= 1e-6)
        super().finish(m, form, price)


class InputForOutput(Base):
    name = "input-for-output"

    def ends(self, m, system):
        ball, price = m.ball(system.input, "2")
        return ball - lm.inner(system.input, system.input), price


class OutputForInput(Base):
    name = "output-for-input"

    def ends(self, m, system):
        ball, price = m.ball(system.output, "2")
        return ball - lm.inner(system.output, system.output), price


class InputPaired(WrongDual):
    name, norms = "input-paired", {("2", "2")}

    def ends(self, m, system):
        dual = m.signal("dual", system.input.size)
        ball_in, price_in = m.ball(system.input, "2")
        ball_out, price_out = m.ball(dual, "2")
        return ball_in + ball_out - 2 * lm.inner(dual, system.input), price_in + price_out


class ForgedRole(Base):
    name = "forged-role"

    def ends(self, m, system):
        ball, price = m.ball(dataclasses.replace(1e3 * system.input, role="input"), "2")
        return ball - lm.inner(system.output, system.output), price


class ForgedOutput(Base):
    name = "forged-output"

    def ends(self, m, system):
        ball, price = m.ball(system.input, "2")
        small = dataclasses.replace(1e-3 * system.output, role="output")
        return ball - lm.inner(small, small), price


class ForgedRule(Base):
    name = "forged-rule"

    def layer(self, m, form, act):
        term = lm.inner(act.pre, act.pre, weight=m.multiplier(act)).terms[0]
        rule = lm.qc.slope_restricted(act, 1.0).terms[0].rule
        return form + lm.QuadraticForm(terms=(dataclasses.replace(term, rule=rule),))


class EmptyRule(Base):
    name = "empty-rule"

    def layer(self, m, form, act):
        term = lm.qc.slope_restricted(act, m.multiplier(act)).terms[0]
        rule = dataclasses.replace(term.rule, subject=None)
        return form - lm.QuadraticForm(terms=(dataclasses.replace(term, rule=rule),))


class Ghost(Base):
    name = "ghost"

    def finish(self, m, form, price):
        ghost = lm.LinearForm.of(lm.Signal(name="ghost", size=2))
        super().finish(m, form + lm.inner(ghost, ghost, weight=m.variable("g", 2)), price)


class Stated(Base):
    """A true inequality, stated by hand: w (v - w) >= 0 for ReLU."""

    name = "stated"

    def layer(self, m, form, act):
        return form - 2 * lm.inner(act.post, act.pre - act.post, weight=m.multiplier(act))


class FalselyStated(Base):
    """A false inequality, stated by hand: v v <= 0."""

    name = "falsely-stated"

    def layer(self, m, form, act):
        return form + lm.inner(act.pre, act.pre, weight=m.multiplier(act))


class FalseOutput(Base):
    """A false inequality about the output itself."""

    name = "false-output"

    def finish(self, m, form, price):
        super().finish(m, form + 0.9 * lm.inner(self.y, 1.0 * self.y), price)

    def ends(self, m, system):
        self.__class__.y = system.output
        return super().ends(m, system)


class BadMultipliers(lm.Formulation):
    name, norms = "bad-multipliers", {("2", "2")}
    kind: str = lm.option("nan", help="what is wrong")

    def build(self, system, spec):
        t = [np.ones(a.size) for a in system.activations]
        g, s = np.ones(system.input.size), np.ones(system.output.size)
        if self.kind == "nan":
            t[0][0], g[0] = np.nan, np.inf
        elif self.kind == "negative":
            t, g = [-x for x in t], -g
        elif self.kind == "zero":
            t, g, s = [0 * x for x in t], 0 * g, 0 * s
        elif self.kind == "tiny":
            g, s = 1e-200 * g, 1e-200 * s
        elif self.kind == "shape":
            g = np.ones(system.input.size + 1)
        elif self.kind == "count":
            t = t[:-1]
        elif self.kind == "text":
            g = "many"
        elif self.kind == "none":
            s = None
        elif self.kind == "lists":
            t, g, s = [list(x) for x in t], list(g), list(s)
        elif self.kind == "objects":
            g = np.array([None] * system.input.size)
        return lm.Multipliers(t=tuple(t), g=g, s=s)


class SmallNorm(lm.Formulation):
    name, norms = "small-norm", {("2", "2"), ("inf", "1")}
    value: float = lm.option(1e-9, help="a constant that is said to be the bound")
    rule: str = lm.option("product", help="the rule that it claims to follow")

    def build(self, system, spec):
        return lm.norms.constant(self.value).with_rule(self.rule)


class NoObjective(Base):
    name = "no-objective"

    def finish(self, m, form, price):
        m.require(form >= 0)


class ConstantObjective(Base):
    name = "constant-objective"

    def finish(self, m, form, price):
        m.require(form >= 0)
        m.minimize(1.0)


class NoConstraint(Base):
    name = "no-constraint"

    def finish(self, m, form, price):
        m.minimize(price)


class TwoVariables(Base):
    name = "two-variables"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, m.multiplier(act) * m.variable("u"))


class NotANumber(Base):
    name = "not-a-number"

    def layer(self, m, form, act):
        return form - float("nan") * lm.qc.slope_restricted(act, m.multiplier(act))


class WrongSize(Base):
    name = "wrong-size"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act, m.variable("t", act.size + 1, nonnegative=True))


class NoActivation(Base):
    name = "no-activation"

    def layer(self, m, form, act):
        return form - lm.qc.slope_restricted(act.pre, m.multiplier(act))


class NotRequired(Base):
    name = "not-required"

    def finish(self, m, form, price):
        m.require(form)


class ReturnsNothing(Base):
    name = "returns-nothing"

    def build(self, system, spec):
        super().build(system, spec)


class ReturnsTheClass(Base):
    name = "returns-the-class"

    def build(self, system, spec):
        return lm.Model


class Raises(Base):
    name = "raises"

    def build(self, system, spec):
        return 1 / 0


class Exits(Base):
    name = "exits"

    def build(self, system, spec):
        sys.exit(0)


class TooFewArguments(Base):
    name = "too-few-arguments"

    def build(self, system):
        return None


class ChangesSlopes(Base):
    name = "changes-slopes"

    def layer(self, m, form, act):
        act.beta[:] = 0.1
        return super().layer(m, form, act)


class ChangesWeights(Base):
    name = "changes-weights"

    def layer(self, m, form, act):
        for block in act.pre.blocks.values():
            block.enclosure().center[:] *= 0.1
        return super().layer(m, form, act)


class ChangesOutput(Base):
    name = "changes-output"

    def ends(self, m, system):
        for block in system.output.blocks.values():
            block.weights[:] = 0.0
        return super().ends(m, system)


class NoNorms(Base):
    name, norms = "no-norms", set()


class StrangeNorms(Base):
    name, norms = "strange-norms", {("2", "3")}


class NormsAsText(Base):
    name, norms = "norms-as-text", {"22"}
