"""What the tests of files share: small networks and models, programs by hand, solvers on the command line."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.sparse as sp
from onnx import TensorProto, helper, numpy_helper

import lipmodel as lm
from lipmodel.backends import backend
from lipmodel.backends.base import SolveOptions
from lipmodel.bridges.program import ConeProgram, SocBlock, cone_program
from lipmodel.bridges.scaling import prepare
from lipmodel.families import chosen_outputs
from lipmodel.formulation import formulation
from lipmodel.io.sidecar import Link, read_map
from lipmodel.spec import Norm, parse_outputs

Array = np.ndarray[Any, Any]
CSDP, SDPA = shutil.which("csdp"), shutil.which("sdpa")
needs_csdp = pytest.mark.skipif(CSDP is None, reason="csdp is not installed (Debian: coinor-csdp)")
needs_sdpa = pytest.mark.skipif(SDPA is None, reason="sdpa is not installed (Debian: sdpa)")

HEADER: dict[str, Any] = {
    "network": {"sha256": "0" * 64, "graph_input": None, "graph_output": None},
    "spec": lm.Spec().to_json(),
    "formulation": {"name": "by-hand", "options": {}},
    "member": {"row": None, "column": None, "norms": ["2", "2"]},
}
"""What a map says about its origin, for models that have none."""

PARAMETERS = """\
200 unsigned int maxIteration;
1.0E-8 double 0.0 < epsilonStar;
1.0E2 double 0.0 < lambdaStar;
2.0 double 1.0 < omegaStar;
-1.0E5 double lowerBound;
1.0E5 double upperBound;
0.1 double 0.0 <= betaStar < 1.0;
0.2 double 0.0 <= betaBar < 1.0, betaStar <= betaBar;
0.9 double 0.0 < gammaStar < 1.0;
1.0E-8 double 0.0 < epsilonDash;
%+18.16e char* xPrint
%+8.3e char* XPrint
%+8.3e char* YPrint
%+10.16e char* infPrint
"""


def small_net(seed: int, activation: Any = "relu", sizes: tuple[int, ...] = (3, 5, 4, 2)) -> lm.Network:
    """A random chain."""
    rng = np.random.default_rng(seed)
    return lm.from_weights([rng.normal(size=(b, a)) for a, b in pairwise(sizes)], activation=activation)


def conv_net(path: Path, seed: int = 0) -> Path:
    """A convolution, average pooling, a residual block and a dense end, as an ONNX file."""
    rng = np.random.default_rng(seed)
    shapes = {"K1": (2, 1, 3, 3), "K2": (2, 2, 3, 3), "W": (2, 8)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 2, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "K1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "K2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("LeakyRelu", ["d"], ["e"], alpha=0.1),
        helper.make_node("AveragePool", ["e"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "W"], ["y"], transB=1),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 4, 4]), ("y", [1, 2]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def stated(net: lm.Network, name: str, norms: tuple[Norm, Norm], outputs: str = "all", **options: Any) -> lm.Model:
    """The model of a formulation for some outputs of a network."""
    system = chosen_outputs(lm.increments(net), parse_outputs(outputs))
    model = lm.build(system, formulation(name, options), lm.Spec(input_norm=norms[0], output_norm=norms[1]))
    assert isinstance(model, lm.Model)
    return model


def program_of(model: lm.Model) -> ConeProgram:
    """The scaled program that files hold."""
    return cone_program(prepare(model).model)


def with_everything(seed: int = 0) -> ConeProgram:
    """A program with a matrix inequality, inequalities, equalities, and cones of both kinds."""
    program = program_of(stated(small_net(seed), "geolip", ("inf", "2")))
    rng = np.random.default_rng(seed)

    def rows(count: int) -> tuple[Any, Array]:
        matrix = sp.random_array((count, program.size), density=0.5, rng=rng, format="csr")
        return matrix, rng.normal(size=count)

    eq, eq_rhs = rows(2)
    cones = [(rows(4), False), (rows(5), True), (rows(3), False)]
    soc = tuple(SocBlock(matrix=m, rhs=b, rotated=rotated) for (m, b), rotated in cones)
    return replace(program, eq=eq, eq_rhs=eq_rhs, soc=soc)


def linear_program(seed: int = 0, rows: int = 6, size: int = 4) -> ConeProgram:
    """A bounded linear program with inequalities, an equality, nonnegative and free variables."""
    rng = np.random.default_rng(seed)
    base = program_of(stated(small_net(seed), "lipsdp-neuron", ("2", "2")))
    inside, weights = rng.uniform(1.0, 2.0, size=size), rng.uniform(0.1, 1.0, size=rows)
    free = rng.normal(size=(rows, size))
    signs = np.eye(size)[: size - 1]
    equal = rng.normal(size=(1, size))
    return replace(
        base,
        cost=free.T @ weights,  # a combination of the rows: bounded below
        psd=(),
        ineq=sp.csr_array(np.vstack([signs, free])),
        ineq_rhs=np.concatenate([np.zeros(size - 1), rng.uniform(0.1, 1.0, size=rows) - free @ inside]),
        eq=sp.csr_array(equal),
        eq_rhs=-equal @ inside,
    )


def block_values(program: ConeProgram, x: Array) -> list[Array]:
    """The matrices C + sum_j x_j A_j, both triangles."""
    result = []
    for block in program.psd:
        dense = np.zeros((block.order, block.order))
        weight = np.where(block.var < 0, 1.0, x[np.maximum(block.var, 0)])
        np.add.at(dense, (block.row, block.col), weight * block.value)
        result.append(dense + np.tril(dense, -1).T)
    return result


def bound_of(link: Link, objective: float) -> float:
    """The bound that an objective value of the file (in its geometric form) would give."""
    value = link.scale * objective + link.offset
    return math.sqrt(max(value, 0.0)) if link.bound == "sqrt" else value


def run_csdp(path: Path) -> Path:
    """CSDP's solution file of a problem file."""
    assert CSDP is not None
    solution = path.with_suffix(".sol")
    done = subprocess.run([CSDP, path.name, solution.name], cwd=path.parent, capture_output=True, text=True, timeout=60)
    assert "Success" in done.stdout, done.stdout
    return solution


def run_sdpa(path: Path) -> Path:
    """SDPA's result file of a problem file, with all digits."""
    assert SDPA is not None
    solution, parameters = path.with_suffix(".out"), path.with_name("param.sdpa")
    parameters.write_text(PARAMETERS)
    argv = [SDPA, "-ds", path.name, "-o", solution.name, "-p", parameters.name]
    subprocess.run(argv, cwd=path.parent, capture_output=True, text=True, timeout=60, check=True)
    return solution


def read_json(path: Any) -> Any:
    """The content of a JSON file."""
    return json.loads(Path(path).read_text())


def saved(net: lm.Network, folder: Path) -> Path:
    path = folder / "net.onnx"
    net.save(path)
    return path


def export_of(net: Path, out: Path, name: str = "lipsdp-neuron", **asked: Any) -> tuple[Path, Path]:
    """The problem and its map."""
    written = lm.export(net, name, out, **asked)
    return Path(written[0]), Path(written[1])


def known_solution(net: Path, link: Link, name: str = "lipsdp-neuron", norms: Any = ("2", "2")) -> Array:
    """The vector of the file at Clarabel's optimum of the model."""
    model = stated(lm.load(net), name, norms)
    point = backend("clarabel").solve(model, SolveOptions(tol=1e-9))
    assert point.values is not None
    by_name = {v.name: value for v, value in point.values.items()}
    vector = np.zeros(link.size)
    for v in link.variables:
        vector[link.offsets[v] : link.offsets[v] + v.size] = link.sign * by_name[v.name] / link.factors[v]
    return vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """An exported problem: a network, its map, a good solution, the bound of that and a witnessed lower bound."""

    net: Path
    map: Path
    x: Array
    bound: float
    lower: float


def make_problem(folder: Path) -> Problem:
    """LipSDP of a small chain as an SDPA file."""
    net = saved(small_net(3), folder)
    _, beside = export_of(net, folder / "p.dat-s")
    x = known_solution(net, read_map(beside))
    solved = lm.solve(net, "lipsdp-neuron", backend="clarabel", tol=1e-8)
    assert solved.lower_bound is not None
    return Problem(net=net, map=beside, x=x, bound=solved.bound, lower=solved.lower_bound)


_DROPPED = object()


def spoilt(data: Any, *, first: int, every: int) -> Iterator[Any]:
    """JSON values that differ from one in a single place (of a list only the first ones), `every` few of them."""
    for number, place in enumerate(_places(data, first)):
        values = (_DROPPED, None, -1, 10**9, 0.25, "x", [], {}, [[1]], True)
        for value in values[number % every :: every]:
            changed = copy.deepcopy(data)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if value is _DROPPED:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            yield changed


def _places(data: Any, first: int, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [at] if at else []
    listed = data[:first] if isinstance(data, list) else []
    for key, value in data.items() if isinstance(data, dict) else enumerate(listed):
        places += _places(value, first, (*at, key))
    return places
