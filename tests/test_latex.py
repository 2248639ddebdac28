"""Models as LaTeX: every kind of model gives text that a strict reader of the commands it uses accepts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.model.forms import LinearForm, QuadraticForm, Signal
from lipmodel.model.latex import model_latex
from lipmodel.model.sets import CONES, SparsePSD
from lipmodel.model.terms import Coefficients, Congruence
from lipmodel.testing.backends import lipsdp, mixed_norm
from lipmodel.testing.networks import KINDS, random_system

TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[{}$&_^]|[^\\{}$&_^]", re.DOTALL)
MATH = {
    *("min", "quad", "text", "mathrm", "mathbf", "mathbb", "mathcal", "top", "lVert", "rVert", "succeq", "geq", "in"),
    *("times", "sqrt", "cdot", "alpha", "beta", "kappa", "sigma", "rho", "backslash", "wedge", "sim", "qquad", "gamma"),
    *("lambda", "mu", "nu", "tau"),
}
TEXT = {"noindent", "item"}
ONE_ARGUMENT = {"text", "mathrm", "mathbf", "mathbb", "mathcal", "sqrt"}


def read(text):
    """Read it as LaTeX would: raises AssertionError with the place of the first mistake."""
    tokens = [m.group() for m in TOKEN.finditer(text)]
    assert "".join(tokens) == text
    groups, environments, math, k = [], [], False, 0
    scripts = [set()]  # per group: what the symbol just read carries already
    while k < len(tokens):
        t = tokens[k]
        place = "".join(tokens[max(0, k - 15) : k + 15])
        inside = math or environments[-1:] == ["align*"]
        if t in (r"\begin", r"\end"):
            name = "".join(tokens[k + 2 : tokens.index("}", k)])
            assert name in ("align*", "itemize"), place
            assert not groups, place
            if t == r"\begin":
                assert not environments, place
                environments.append(name)
            else:
                assert environments.pop() == name, place
                assert not math, place
            k = tokens.index("}", k)
        elif t == "$":
            assert environments == ["itemize"], place
            assert not groups, place
            math = not math
        elif t == "{":
            groups.append(place)
            scripts.append(set())
        elif t == "}":
            assert groups, place
            groups.pop()
            scripts.pop()
        elif t == "&":
            assert environments == ["align*"], place
            assert not groups, place
        elif t in "_^":
            assert inside, place
            assert t not in scripts[-1], f"double script at {place}"
            scripts[-1].add(t)
            assert tokens[k + 1] == "{" or tokens[k + 1] == r"\top", place
            if tokens[k + 1] == r"\top":
                k += 1
            else:
                depth = 1
                end = k + 2
                while depth:
                    depth += {"{": 1, "}": -1}.get(tokens[end], 0)
                    end += 1
                read_group("".join(tokens[k + 2 : end - 1]))
                k = end - 1
        elif t.startswith("\\") and t[1:].isalpha():
            assert t[1:] in (MATH if inside else TEXT), f"{t} at {place}"
            if t[1:] in ONE_ARGUMENT:
                assert tokens[k + 1] == "{", place
            scripts[-1] = set()
        elif t.startswith("\\"):
            assert t[1] in "_&%$#{};\\,", f"{t} at {place}"
            scripts[-1] = set()
        else:
            assert " " <= t <= "~" or t == "\n", place
            assert t not in "#%~", place
            if not t.isspace():
                scripts[-1] = set()
        k += 1
    assert not groups
    assert not environments
    assert not math


def read_group(text):
    read(rf"\begin{{itemize}}\item ${text}$\end{{itemize}}")


WRONG = [
    *("$", "{", "}", "a_b", "50%", "a & b", r"\foo", r"\begin{align*}", r"\begin{equation}\end{equation}"),
    *(rf"\begin{{align*}} {x} \end{{align*}}" for x in ("x_1_{2}", "x_{1}_{2}", r"\text x", "$x$", "#")),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_reader_refuses_what_latex_would(wrong):
    with pytest.raises((AssertionError, ValueError, IndexError)):
        read(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_formulations_on_every_graph(kind):
    system = random_system(kind, 0)
    for model in (lipsdp(system), lipsdp(system, tied=True), *(mixed_norm(system, p, q) for p in "2" for q in "12")):
        for given in (*CONES.values(), SparsePSD()):
            text = model_latex(replace(model, constraints=[replace(model.constraints[0], set=given)]))
            read(text)
            assert text.startswith(r"\begin{align*}")
            assert text.count(r"\min") == 1


def test_every_kind_of_term_and_constraint():
    m = lm.Model("kinds")
    z, other = m.signal("z", 3), m.signal("an_odd name%&#$^~{}\\é", 2)
    x = m.symmetric("X", 3)
    t, u = m.variable("t_Relu/12_%", 2, nonnegative=True), m.variable("kappa")
    gram = Congruence(form=2.0 * z, matrix=x, scale=-1.5)
    table = Coefficients(entries=tuple((lm.inner(z, z, weight=1e-9)).terms[0].triplets()))
    form = QuadraticForm(terms=(gram, table)) + lm.inner(other, np.ones((2, 3)) @ z, weight=t) - lm.inner(z, z)
    m.require(form >= 0)
    m.require(QuadraticForm() >= 0)
    m.require(t.sum().equals(1.0))
    m.require(3 * t - 2 >= np.array([1.0, 2.0]))
    m.require((np.ones((3, 1)) @ u).in_cone(lm.SecondOrder()))
    m.require((np.ones((3, 1)) @ u).in_cone(lm.RotatedSecondOrder()))
    m.minimize(1.5e-7 * t.sum() - u + 2.0, bound="sqrt")
    text = model_latex(m)
    read(text)
    assert r"1.5 \cdot 10^{-7}" in text
    assert r"\mathcal{Q}_{r}" in text
    assert r"\sqrt{\cdot}" in text
    assert "- 1.5 (" in text


def test_a_symbol_per_matrix():
    weights = np.arange(6.0).reshape(2, 3)
    m = lm.Model("shared")
    z = LinearForm.of(Signal(name="z", size=3))
    form = weights @ z
    k = m.variable("k")
    m.require(lm.inner(form, form, weight=k.spread(2)) >= 0)
    m.minimize(k)
    text = model_latex(m)
    read(text)
    assert text.count(r"\item") == 1
    assert r"\mathbb{R}^{2 \times 3}" in text


def test_a_model_without_objective_prints_too():
    m = lm.Model("bare")
    z = m.signal("z", 1)
    m.require(lm.inner(z, z) >= 0)
    read(model_latex(m))
