"""Probes of the checkers beside the kernel: certificates and small systems, as they are and with one value changed.

The answers expected of a mutated checker are those of the checker itself, which enumeration finds sound
(benchmarks/enumeration.py, tests/test_red_team.py): a probe says that a change of the code changes a verdict.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

import lipmodel as lm
from benchmarks.questions import Probe
from lipmodel.certify.kernel import Block, Rejected, System
from lipmodel.domain import Global
from lipmodel.errors import Refuted
from lipmodel.network.increments import exact_system
from lipmodel.question import systems

Question = Callable[[Any], Any]
CHANGED = 60
"""Changes of one certificate that are asked about."""


def hand_made(*, blurred: bool, outputs: int = 1) -> System:
    """Two inputs, layers of two and of one neuron with a skip connection, in quarters, with radii or without."""

    def block(rows: list[list[int]]) -> Block:
        radius = [[(i + j) % 2 for j in range(len(row))] for i, row in enumerate(rows)] if blurred else None
        return Block(mantissa=rows, exponent=2, radius=radius)

    return System(
        sizes=(2, 2, 1),
        pre=({0: block([[3, -1], [0, 5]])}, {0: block([[1, 2]]), 1: block([[-4, 7]])}),
        alpha=((0.0, -0.25), (0.5,)),
        beta=((1.0, 0.75), (1.0,)),
        output={1: block([[2, -3]] * outputs), 2: block([[6 - k] for k in range(outputs)])},
    )


@cache
def solved(sizes: tuple[int, ...], formulation: str, norm: str, options: tuple[tuple[str, Any], ...] = ()) -> Any:
    """The exact system of a random chain of ReLUs, and the proof of a formulation for it."""
    rng = np.random.default_rng(len(formulation) + sum(sizes))
    network = lm.from_weights([rng.standard_normal((m, n)) for n, m in itertools.pairwise(sizes)])
    result = lm.solve(network, formulation, norm=norm, witness=False, options=dict(options))
    assert result.certificate is not None
    norms = norm.split(":")
    system = systems(network, Global(), result.spec.input_norm).system
    return exact_system(system), tuple(norms), result.certificate["upper"], system


def variants(proof: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The proof, and the same with one value changed, every kind of change."""
    yield proof
    places = [path for path in _paths(proof) if path not in ((), ("rule",))]
    rng = random.Random(0)
    for path in rng.sample(places, min(len(places), CHANGED)):
        changed = copy.deepcopy(proof)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = _other(holder[path[-1]], rng)
        yield changed


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, 2 * value, True, 10**30, str(value)])
    if isinstance(value, str) and "0x" in value:
        x = float.fromhex(value)
        return rng.choice([(x * 0.99).hex(), (x * 1.01).hex(), (-x).hex(), "inf", x])
    if isinstance(value, list):
        return rng.choice([value[:-1], [*value, *value[-1:]], value[::-1], [], {}, None])
    return rng.choice([None, "x", {}])


def tight(proof: dict[str, Any], needed: float) -> Iterator[dict[str, Any]]:
    """The proof with the least bound that it proves, and with the double below."""
    for bound in (needed, float(np.nextafter(needed, -np.inf))):
        yield {**proof, "bound": bound.hex()}


def of_polynomials() -> Iterator[tuple[str, Question]]:
    for outputs, blurred in itertools.product((1, 2), (False, True)):
        system = hand_made(blurred=blurred, outputs=outputs)
        for p, q in itertools.product(("1", "2", "inf"), repeat=2):
            yield (
                f"program {outputs} {blurred} {p} {q}",
                lambda k, s=system, p=p, q=q: plain(k.gradient_program(s, p, q)),
            )
    system = hand_made(blurred=True)
    for limit in (1, 5, 17, 18, 19, 20):

        def limited(k: Any, limit: int = limit) -> Any:
            k.MAX_MONOMIALS = limit
            return plain(k.gradient_program(system, "inf", "1"))

        yield f"at most {limit} monomials", limited
    for sizes, formulation, norm, options in (
        ((2, 3, 1), "lipopt", "inf:1", (("level", 2),)),
        ((2, 2, 2), "lipopt", "inf:1", ()),
        ((2, 2, 2), "sos", "2:2", ()),
    ):
        exact, norms, proof, _ = solved(sizes, formulation, norm, options)
        stated = {key: value for key, value in proof.items() if key != "norms"}
        for n, changed in enumerate(variants(stated)):
            yield (
                f"{formulation} {norm} {n}",
                lambda k, c=changed, e=exact, s=norms: k.decide(k.gradient_program(e, *s), c),
            )
    for rule, bare in {
        "krivine": {"products": [[1, -2], [3]], "weights": [3, 1], "exponent": 2},
        "elimination": {"order": [4, 3, 2, 1, 0]},
        "sos": {
            "blocks": [{"constraint": None, "basis": [[], [0], [1, 2]], "gram": [4, 1, 4, 0, -1, 4], "exponent": 1}],
            "equalities": [],
        },
    }.items():
        program = importlib.import_module("lipmodel.certify.polynomials").gradient_program(system, "inf", "1")
        needed = importlib.import_module("lipmodel.certify.polynomials").RULES[rule][1](program, bare) + program.blur
        for bound in (float(needed), float(needed) * (1 - 1e-15), float(needed) * (1 + 1e-15)):
            proof = {"rule": rule, **bare, "bound": bound.hex()}
            yield f"hand-made {rule} {bound!r}", lambda k, c=proof: k.decide(k.gradient_program(system, "inf", "1"), c)
    for limit in ("MAX_HELD", "MAX_FACTORS", "MAX_DEGREE", "MAX_EXPANDED"):
        for most in range(1, 9):

            def few(k: Any, limit: str = limit, most: int = most) -> Any:
                setattr(k, limit, most)
                program = k.gradient_program(system, "inf", "1")
                products = {"products": [[1, -2, 3], [3]], "weights": [3, 1], "exponent": 2}
                block = {"constraint": None, "basis": [[], [0], [1, 2]], "gram": [4, 1, 4, 0, -1, 4], "exponent": 1}
                return [
                    answer(lambda: k.krivine_bound(program, products)),
                    answer(lambda: k.sos_bound(program, {"blocks": [block, block], "equalities": []})),
                ]

            yield f"{limit} {most}", few


def of_signs() -> Iterator[tuple[str, Question]]:
    for outputs, blurred in itertools.product((1, 2), (False, True)):
        system = hand_made(blurred=blurred, outputs=outputs)
        for p, q in itertools.product(("1", "2", "inf"), repeat=2):

            def program(k: Any, s: System = system, p: str = p, q: str = q) -> Any:
                found, squared = k.sign_program(s, p, q)
                return plain(found), squared

            yield f"program {outputs} {blurred} {p} {q}", program
            proof = {
                "basis": [[], [0], [1, 2]],
                "gram": [4, 1, 4, 0, -1, 4],
                "exponent": 1,
                "triangles": [[0, 1, 2, 1, -1, 3]],
            }

            def bound(k: Any, s: System = system, p: str = p, q: str = q, proof: Any = proof) -> Any:
                return k.signs_bound(*k.sign_program(s, p, q), proof)

            yield f"bound {outputs} {blurred} {p} {q}", bound
    for most in (1, 8, 30, 34, 40, 100):

        def limited(k: Any, most: int = most) -> Any:
            k.MAX_SQUARE = most
            return k.sign_program(hand_made(blurred=False), "2", "1")[1]

        yield f"square of {most}", limited
    for sizes, norm in (((2, 3, 2), "inf:1"), ((2, 3, 1), "2:1")):
        exact, norms, proof, _ = solved(sizes, "geolip-triangle", norm)
        needed = importlib.import_module("lipmodel.certify.signs").check_signs(exact, norms, proof)
        for n, changed in enumerate([*variants(proof), *tight(proof, needed)]):
            yield f"signs {norm} {n}", lambda k, c=changed, e=exact, s=norms: k.check_signs(e, s, c)


def of_metric_chain() -> Iterator[tuple[str, Question]]:
    for sizes in ((2, 2, 2), (2, 3, 2, 2), (3, 2, 1)):
        exact, _, proof, system = solved(sizes, "seqlip", "2:2")
        subject = _Given(system, exact)
        for n, changed in enumerate(variants(proof)):
            yield f"chain {sizes} {n}", lambda k, c=changed, s=subject: k.read_and_check(s, c)
        for k_, factor in enumerate(
            importlib.import_module("lipmodel.certify.metric_chain").chain_factors(exact, _metrics(proof))
        ):
            for square in (0.5, 0.9, 0.99, 0.999, 0.9999999, 1.0, 1.1):
                value = float.fromhex(proof["squares"][k_]) * square
                yield (
                    f"factor {sizes} {k_} {square}",
                    lambda k, f=factor, v=value, t=proof["trees"][k_]: k.decides_factor(f, v, t),
                )
    for blurred in (False, True):
        yield f"no chain {blurred}", lambda k, b=blurred: k.chain_factors(hand_made(blurred=b), [[1.0, 0.0, 1.0]])


def _metrics(proof: dict[str, Any]) -> list[list[float]]:
    return [[float.fromhex(v) for v in values] for values in proof["metrics"]]


class _Given:
    """A subject whose matrices are known."""

    row = column = None

    def __init__(self, system: Any, exact: System) -> None:
        self.system, self.source, self._exact = system, self, exact

    def exact(self, *_: Any) -> System:
        return self._exact


def of_cube_maximum() -> Iterator[tuple[str, Question]]:
    rng = random.Random(1)
    for n in range(60):
        size = rng.randint(1, 7)
        subsets = [tuple(i for i in range(size) if rng.random() < 0.5) for _ in range(rng.randint(1, 9))]
        scale = rng.choice([1, 10**6, 3**80])
        terms = {m: rng.randint(-9, 9) * scale + rng.randint(0, 5) for m in subsets}
        order = rng.sample(range(size), size)
        width = rng.choice([1, 2, 22])

        def maximum(k: Any, terms: Any = terms, order: Any = order, width: int = width) -> Any:
            k.TABLE_WIDTH = width
            return k.maximum_over_signs(terms, order), k.plan(terms, order)

        yield f"maximum {n}", maximum
        if n % 4 == 0:
            yield f"a variable missing {n}", lambda k, t=terms, o=order: k.maximum_over_signs(t, o[1:])
        if n % 3 == 0:

            def limited(k: Any, terms: Any = terms, order: Any = order, most: int = 2 ** (n % 7)) -> Any:
                k.MAX_ENTRIES = most
                return k.maximum_over_signs(terms, order)

            yield f"few entries {n}", limited


def plain(program: Any) -> Any:
    """A program in values that compare."""
    parts = [(p.terms, p.unit) for p in (program.objective, *program.nonnegative, *program.zero)]
    return program.size, parts, program.signs, program.blur


def answer(call: Callable[[], Any]) -> Any:
    """What a checker says: a value, or that it refuses."""
    try:
        return call()
    except (Refuted, Rejected):
        return "refused"


MODULES: dict[str, Callable[[], Iterator[tuple[str, Question]]]] = {
    "polynomials": of_polynomials,
    "signs": of_signs,
    "metric_chain": of_metric_chain,
    "cube_maximum": of_cube_maximum,
}
"""The checkers, files of lipmodel/certify."""


@cache
def probes(module: str) -> tuple[Probe, ...]:
    """All probes of one checker; the limits that a probe sets are put back."""
    checker = importlib.import_module(f"lipmodel.certify.{module}")
    found = []
    for name, question in MODULES[module]():

        def run(k: Any, question: Question = question) -> Any:
            before = {key: value for key, value in vars(k).items() if key.isupper()}
            try:
                return answer(lambda: question(k))
            finally:
                vars(k).update(before)

        found.append(Probe(name, run, run(checker)))
    return tuple(found)
