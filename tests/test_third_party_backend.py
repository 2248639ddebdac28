"""The example of a third party's backend, and the page that explains it, are run as they stand."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lipmodel as lm
from lipmodel import backends
from lipmodel.backends.base import Installed
from lipmodel.cli import main
from lipmodel.testing.backends import backend_checks, parametrize_with_checks

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "third_party_backend"
PAGE = ROOT / "docs" / "backends.md"
sys.path.insert(0, str(EXAMPLE))
from lipmodel_hkm import HKM  # noqa: E402


@parametrize_with_checks(HKM(), tags=("conduct", "linear", "cone", "matrix"))
def test_conformance(backend, check):
    check(backend)


@pytest.mark.slow
@parametrize_with_checks(HKM(), tags=["network"])
def test_conformance_on_networks(backend, check):
    check(backend)


def test_it_is_found_by_its_entry_point(monkeypatch, tmp_path, capsys):
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]["lipmodel.backends"]
    known = backends._entry_points()
    monkeypatch.setattr(backends, "_entry_points", lambda: known | declared)
    rng = np.random.default_rng(0)
    net = lm.from_weights([rng.standard_normal((3, 2)), rng.standard_normal((2, 3))])
    result = lm.solve(net, "lipsdp-neuron", backend="hkm", witness=False)
    assert (result.assurance, result.backend, result.termination) == ("proved", "hkm", "optimal")
    assert result.bound == pytest.approx(
        lm.solve(net, "lipsdp-neuron", backend="clarabel", witness=False).bound, rel=1e-5
    )
    assert main(["backends", "hkm"]) == 0
    assert "accuracy" in capsys.readouterr().out
    path = tmp_path / "net.onnx"
    net.save(path)
    assert main(["solve", str(path), "-f", "lipsdp-neuron", "-b", "hkm", "--backend-option", "accuracy=much"]) == 2
    assert "accuracy" in capsys.readouterr().err


def test_the_page_shows_the_example_as_it_is():
    page = PAGE.read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    example = (EXAMPLE / "lipmodel_hkm.py").read_text()
    (shown,) = [code for _, code in blocks if code.startswith("class HKM")]
    assert shown.rstrip() in example
    (entry,) = [code for kind, code in blocks if kind == "toml"]
    assert entry.strip() in (EXAMPLE / "pyproject.toml").read_text()
    (suite,) = [code for _, code in blocks if "def test_conformance" in code]
    lines = [line for line in suite.splitlines() if line]
    assert set(lines) <= set((EXAMPLE / "test_hkm.py").read_text().splitlines())
    assert f"{len(backend_checks())} checks" in page


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """Problem objects, and replay, as the page writes them."""
    pytest.importorskip("cvxpy")
    monkeypatch.chdir(tmp_path)
    codes = [code for kind, code in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL) if kind == "python"]
    names: dict[str, object] = {}
    ran = 0
    for code in codes:
        if "to_native" in code or "Recorder" in code:
            exec(compile(code, str(PAGE), "exec"), names)
            ran += 1
    assert ran == 2
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(7.0, rel=1e-5)


def test_the_page_lists_every_backend():
    page = PAGE.read_text()
    for name in backends.backend_names():
        solver = backends.backend(name, usable=False)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert solver.capabilities.licence.split()[0] in row
        assert {"factors": "factors", "geometric": "geometric", "standard": "standard"}[
            "factors" if solver.capabilities.structured else solver.capabilities.form
        ] in row or "problem objects" in row
        extra = f"lipmodel[{name}]"
        assert extra in row or name in ("native", "clarabel", "scs")
        assert isinstance(solver.available(), Installed) or extra in row


def test_extras_and_entry_points_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["lipmodel.backends"]
    assert declared == backends._BUILT_IN
    extras = project["optional-dependencies"]
    core = {re.split(r"[>=]", d)[0] for d in project["dependencies"]}
    for name in declared:
        assert name in extras or name in core or name == "native"
    everything = set(extras["all"])
    for name in ("cvxpy", "picos", "mosek", "sdpa", "cvxopt", "highs"):
        assert set(extras[name]) <= everything
    assert not set(extras["copt"]) & everything
