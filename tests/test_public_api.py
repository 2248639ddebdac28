"""What is public: the package's names and what importing it costs; our own formulations use nothing else."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import lipmodel_formulations
import pytest

import lipmodel as lm

FORMULATIONS = sorted(pathlib.Path(lipmodel_formulations.__path__[0]).glob("*.py"))
LINES = 150
HEAVY = ("sympy", "onnx", "onnxruntime", "scipy", "networkx", "flint", "clarabel", "scs", "rich", "matplotlib")


def imported(tree: ast.AST) -> set[str]:
    """The modules that a file imports, at any depth, by their full names; relative imports as they are."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def allowed(module: str) -> bool:
    """The package itself (nothing inside it), NumPy and the standard library."""
    return module == "lipmodel" or module.split(".")[0] in {"numpy", *sys.stdlib_module_names}


def test_there_are_formulations():
    assert {"product", "lipsdp", "geolip"} <= {path.stem for path in FORMULATIONS}


@pytest.mark.parametrize("path", FORMULATIONS, ids=lambda path: path.stem)
def test_formulations_use_only_the_public_api(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not {module for module in imported(tree) if not allowed(module)}
    assert len(text.splitlines()) <= LINES
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lm"
    }
    assert names <= set(lm.__all__)
    private = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("_")}
    assert not private
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not calls & {"__import__", "exec", "eval", "getattr", "open"}


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("import lipmodel as lm", True),
        ("import numpy as np\nfrom math import inf", True),
        ("from lipmodel.model.terms import Factored", False),
        ("def f():\n    import scipy.linalg", False),
        ("from . import product", False),
    ],
)
def test_the_import_check_sees_what_it_should(source, public):
    modules = imported(ast.parse(source))
    assert all(allowed(m) for m in modules) is public


@pytest.mark.parametrize("name", lm.__all__)
def test_every_public_name_resolves(name):
    assert getattr(lm, name) is not None
    assert name in dir(lm)


def test_public_names_are_listed_once():
    assert len(set(lm.__all__)) == len(lm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lm.nonsense


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement, in a fresh interpreter."""
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = loaded_by("import lipmodel")
    assert "lipmodel" in loaded
    assert not loaded & {*HEAVY, "numpy"}


def test_stating_a_formulation_loads_no_solver_and_no_onnx():
    loaded = loaded_by("import lipmodel as lm; lm.Model, lm.qc, lm.inner, lm.Spec, lm.Formulation")
    assert "numpy" in loaded
    assert not loaded & {"sympy", "onnx", "onnxruntime", "clarabel", "scs", "matplotlib"}


def test_public_callables_say_what_they_do():
    import types

    for name in lm.__all__:
        value = getattr(lm, name)
        if callable(value) and not isinstance(value, types.GenericAlias):
            assert value.__doc__, f"{name} has no docstring"
