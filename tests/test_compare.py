"""Comparisons: every method answers for itself, and nothing that one of them does harms the others."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel import comparison as module
from lipmodel.backends import _REGISTERED as BACKENDS
from lipmodel.backends.base import Capabilities, Installed, Missing, Point
from lipmodel.comparison import Entry
from lipmodel.formulation import formulation
from lipmodel.lower.witness import Witness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")

FILE = Path(__file__).with_name("compare_formulations.py")
FEW = ("product", "lipsdp-layer", "lipsdp-neuron")


@pytest.fixture(scope="module")
def net() -> lm.Network:
    rng = np.random.default_rng(3)
    return lm.from_weights([rng.standard_normal(s) for s in ((8, 3), (7, 8), (4, 7))])


@pytest.fixture(scope="module")
def mine() -> Any:
    """The formulations of the user's file."""
    spec = importlib.util.spec_from_file_location("compare_formulations", FILE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    from lipmodel.formulation import _REGISTERED

    before = dict(_REGISTERED)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    _REGISTERED.clear()
    _REGISTERED.update(before)
    return loaded


@pytest.fixture(scope="module")
def whole(net: lm.Network) -> lm.Comparison:
    """Everything that there is, in a time that lets most answer."""
    return lm.compare(net, time_limit=30)


def by_method(comparison: lm.Comparison) -> dict[str, Entry]:
    return {entry.method: entry for entry in comparison.entries}


# ---------------------------------------------------------------- what is compared


def test_every_known_formulation_is_there_once(whole: lm.Comparison) -> None:
    from lipmodel.formulation import formulation_names

    assert sorted(entry.method for entry in whole.entries) == sorted(formulation_names())
    answered = {entry.method for entry in whole.answered}
    assert {"product", "lipsdp-neuron", "lipsdp-layer", "geolip", "chordal-lipsdp"} <= answered
    assert all(entry.reason for entry in whole.skipped)
    assert not whole.interrupted


def test_the_best_bound_is_first_and_nothing_is_below_the_witness(whole: lm.Comparison) -> None:
    bounds = [entry.bound for entry in whole.answered]
    assert bounds == sorted(bounds)
    assert whole.best == bounds[0]
    assert whole.lower_bound is not None
    assert 0.0 < whole.lower_bound <= whole.best
    assert [entry.bound for entry in whole.entries[: len(bounds)]] == bounds
    assert [result.bound for result in whole.results] == bounds


def test_a_row_is_what_the_method_proves_by_itself(net: lm.Network, whole: lm.Comparison) -> None:
    entries = by_method(whole)
    for name in ("product", "lipsdp-neuron", "lipsdp-layer", "geolip"):
        alone = lm.solve(net, name, norm="2", witness=False)
        assert entries[name].bound == pytest.approx(alone.bound, rel=1e-5)
        assert entries[name].note == ""
    assert entries["lipsdp-neuron"].backend == "native"
    assert entries["lipsdp-neuron"].label == "lipsdp-neuron (native)"
    assert entries["product"].label == "product"


def test_every_result_is_whole_and_its_certificate_is_true(net: lm.Network, whole: lm.Comparison) -> None:
    for result, data in zip(whole.results, whole.to_json(), strict=True):
        assert result.lower_bound == whole.lower_bound
        assert lm.Result.from_json(data).bound == result.bound
        verdict = lm.verify(net, data)
        assert verdict.bound == result.bound
        assert verdict.lower_bound == whole.lower_bound


@pytest.mark.parametrize(
    ("question", "methods"),
    [
        ({"norm": "inf:1"}, {"product", "geolip"}),
        ({"norm": "1"}, {"product", "geolip"}),
        ({"outputs": "margin:1"}, {"product", "geolip", "lipsdp-neuron"}),
        ({"norm": "inf", "domain": "box:0:1", "outputs": "2"}, {"product", "geolip"}),
    ],
)
def test_questions_of_all_kinds(net: lm.Network, question: dict[str, Any], methods: set[str]) -> None:
    comparison = lm.compare(net, ["product", "geolip", "lipsdp-neuron"], time_limit=30, **question)
    assert {entry.method for entry in comparison.answered} == methods
    for entry in comparison.answered:
        alone = lm.solve(net, entry.method, norm=question.get("norm", "2"), witness=False, **_rest(question))
        assert entry.bound == pytest.approx(alone.bound, rel=1e-5)
        assert comparison.lower_bound is not None
        assert comparison.lower_bound <= entry.bound
    for entry in comparison.skipped:
        assert entry.status == "not applicable"
        assert "not reached" in entry.reason


def _rest(question: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in question.items() if key != "norm"}


def test_the_norm_is_the_one_that_the_named_formulations_share(net: lm.Network) -> None:
    assert lm.compare(net, ["geolip"], time_limit=20).spec.norms == ("inf", "inf")
    assert lm.compare(net, ["geolip", "product"], time_limit=20).spec.norms == ("2", "2")


def test_a_method_is_asked_once_however_it_is_named(net: lm.Network) -> None:
    given = ["product", "autolip", "geolip", formulation("geolip"), formulation("geolip", {"cone": "dd"})]
    comparison = lm.compare(net, given, time_limit=20)
    assert sorted(entry.method for entry in comparison.entries) == ["geolip", "geolip cone=dd", "product"]


def test_the_network_is_read_once(net: lm.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "net.onnx", []
    net.save(path)
    plain = module.loaded
    monkeypatch.setattr(module, "loaded", lambda *given: (seen.append(given), plain(*given))[1])
    comparison = lm.compare(path, FEW, time_limit=20)
    assert len(seen) == 1
    assert len(comparison.answered) == 3
    for data in comparison.to_json():
        lm.verify(path, data)


# ---------------------------------------------------------------- backends


def test_models_are_solved_by_every_backend_and_closed_forms_once(net: lm.Network) -> None:
    comparison = lm.compare(net, FEW, backends=["native", "clarabel"], time_limit=30)
    assert sorted(entry.label for entry in comparison.answered) == [
        "lipsdp-layer (clarabel)", "lipsdp-layer (native)",
        "lipsdp-neuron (clarabel)", "lipsdp-neuron (native)", "product",
    ]  # fmt: skip
    bounds = [entry.bound for entry in comparison.answered if entry.method == "lipsdp-neuron"]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)


def test_a_backend_that_is_not_there_is_listed(net: lm.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        name = "absent"

        def available(self) -> Missing:
            return Missing(extra="absent")

    monkeypatch.setitem(BACKENDS, "absent", Absent)
    comparison = lm.compare(net, ["product", "lipsdp-neuron"], backends=["absent", "native"], time_limit=20)
    assert len(comparison.answered) == 2
    (left,) = comparison.skipped
    assert left.backend == "absent"
    assert "not installed" in left.reason
    with pytest.raises(lm.BackendUnavailable, match="not installed"):
        lm.compare(net, FEW, backends=["absent"])
    with pytest.raises(lm.UsageError, match="no-such-solver"):
        lm.compare(net, FEW, backends=["no-such-solver", "native"])


def test_a_backend_that_does_not_take_a_model_is_listed(net: lm.Network) -> None:
    comparison = lm.compare(net, ["product", "lipsdp-neuron"], backends=["highs"], time_limit=20)
    assert [entry.method for entry in comparison.answered] == ["product"]
    (left,) = comparison.skipped
    assert (left.label, left.status) == ("lipsdp-neuron (highs)", "not applicable")


def test_no_solver_is_ever_in_the_process_that_compares() -> None:
    script = (
        "import sys, numpy as np, lipmodel as lm\n"
        "net = lm.from_weights([np.ones((3, 2)), np.ones((2, 3))])\n"
        "c = lm.compare(net, ['product', 'geolip', 'chordal-lipsdp'], norm='2', time_limit=20)\n"
        "assert len(c.answered) == 3, [(e.label, e.reason) for e in c.entries]\n"
        "print(sorted({'clarabel', 'scs', 'mosek', 'highspy', 'cvxpy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- own values


def test_a_bound_above_the_product_is_shown_as_it_is(net: lm.Network, mine: Any) -> None:
    comparison = lm.compare(net, ["product", mine.Loose], time_limit=20)
    entries = by_method(comparison)
    assert entries["loose"].bound > 2.0 * entries["product"].bound
    assert entries["loose"].note == ""
    lm.verify(net, entries["loose"].result.certificate)  # type: ignore[union-attr]
    solved = lm.solve(net, mine.Loose, witness=False)
    assert solved.bound <= entries["product"].bound
    assert solved.instead


@pytest.mark.parametrize("norm", ["2", "2:inf"])
def test_what_stands_in_for_a_bound_is_called_so(
    norm: str, net: lm.Network, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Useless:
        name, capabilities = "useless", Capabilities(cones=frozenset({"psd"}))

        def available(self) -> Installed:
            return Installed()

        def refuses(self, model: Any) -> None:
            return None

        def solve(self, model: Any, options: Any) -> Point:
            return Point(values=None, termination="failed")

    monkeypatch.setitem(BACKENDS, "useless", Useless)
    comparison = lm.compare(net, [mine.LipSDP, "product"], norm=norm, backends=["useless"], time_limit=20)
    entries = by_method(comparison)
    assert entries["own-lipsdp"].status == "answered"
    assert entries["own-lipsdp"].note == "a closed form instead, failed"
    assert entries["product"].note == ""
    lm.verify(net, entries["own-lipsdp"].result.certificate)  # type: ignore[union-attr]


def test_norm_bounds_alone_are_the_product(mine: Any) -> None:
    wide = lm.from_weights([np.full((2, 3), 1e200), np.full((1, 2), 1e200)])
    comparison = lm.compare(wide, ["product", mine.LipSDP], time_limit=20)
    assert {entry.status for entry in comparison.entries} <= {"failed", "did not fit"}  # the constant is no double
    assert comparison.best == np.inf
    assert comparison.to_json() == []


def test_a_network_without_activations(mine: Any) -> None:
    line = lm.from_weights([np.diag([3.0, 4.0])])
    comparison = lm.compare(line, ["product", "lipsdp-neuron", "geolip"], norm="2", time_limit=20)
    assert len(comparison.answered) == 3
    assert comparison.best == pytest.approx(4.0, rel=1e-9)
    constant = lm.from_weights([np.zeros((2, 2)), np.zeros((2, 2))])
    comparison = lm.compare(constant, ["product", "lipsdp-neuron"], time_limit=20)
    assert [entry.bound for entry in comparison.answered] == [0.0, 0.0]


def test_a_bound_below_the_witness_is_a_defect(net: lm.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def false(network: Any, spec: Any, seconds: float, target: float, send: Any) -> Witness:
        x = np.zeros(3)
        return Witness(x=x, y=x + 1.0, p="2", q="2", outputs=spec.outputs, ratio=1e6)

    monkeypatch.setattr(module, "witness", false)
    with pytest.raises(lm.SoundnessError, match="product"):
        lm.compare(net, ["product"], time_limit=20)


# ---------------------------------------------------------------- what goes wrong


ENDS = {
    "raises": ("failed", "ZeroDivisionError"),
    "exits": ("failed", "SystemExit"),
    "leaves": ("failed", "status 0"),
    "killed": ("failed", "signal 9"),
    "greedy": ("did not fit", "memory"),
    "declines": ("not applicable", "none of mine"),
    "hangs": ("did not fit", "no answer within"),
    "deaf": ("did not fit", "no answer within"),
}


def test_what_one_method_does_harms_no_other(net: lm.Network, mine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    given = [getattr(mine, name.capitalize()) for name in ENDS]
    comparison = lm.compare(net, [*given, "product", mine.Loud], time_limit=8)
    assert capfd.readouterr() == ("", "")
    assert {entry.method for entry in comparison.answered} == {"product", "loud"}
    for entry in comparison.skipped:
        status, reason = ENDS[entry.method]
        assert entry.status == status
        assert reason in entry.reason
    assert len(comparison.skipped) == len(ENDS)


def test_what_hangs_alone_has_no_bound(net: lm.Network, mine: Any) -> None:
    comparison = lm.compare(net, [mine.Hangs], time_limit=2)
    assert comparison.answered == []
    assert comparison.best == np.inf


def test_no_process_outlives_the_comparison(net: lm.Network, mine: Any, tmp_path: Path) -> None:
    crowd = mine.Crowd(folder=str(tmp_path))
    comparison = lm.compare(net, [crowd], norm="2:inf", time_limit=5, jobs=2)
    (entry,) = comparison.entries
    assert entry.status == "did not fit"
    numbers = [int(path.name) for path in tmp_path.iterdir()]
    assert numbers
    deadline = time.monotonic() + 20
    while any(_alive(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["Hangs", "Deaf"])
def test_an_interrupt_keeps_what_is_proved(name: str, net: lm.Network, mine: Any) -> None:
    def watch(number: int, entry: Entry, state: Any) -> None:
        if entry.method == name.lower() and entry.status == "running":
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    before = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        given = ["product", getattr(mine, name), mine.Declines]
        comparison = lm.compare(net, given, time_limit=300, watch=watch)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert comparison.interrupted
    assert [entry.method for entry in comparison.answered] == ["product"]
    assert by_method(comparison)[name.lower()].reason == "interrupted"
    assert comparison.lower_bound is None


def test_an_interrupt_before_any_bound_is_raised(net: lm.Network, mine: Any) -> None:
    def watch(number: int, entry: Entry, state: Any) -> None:
        if entry.status == "running":
            signal.setitimer(signal.ITIMER_REAL, 0.3)

    before = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            lm.compare(net, [mine.Hangs], time_limit=300, watch=watch)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "10"])
def test_limits_are_positive_seconds(limit: Any, net: lm.Network) -> None:
    with pytest.raises(lm.UsageError, match="time limit"):
        lm.compare(net, FEW, time_limit=limit)


def test_no_time_at_all_still_gives_the_cheapest_bound(net: lm.Network) -> None:
    comparison = lm.compare(net, ["lipsdp-neuron", "product"], time_limit=1e-3)
    assert "product" in {entry.method for entry in comparison.answered}


def test_named_formulations_must_exist_and_one_must_apply(net: lm.Network, mine: Any) -> None:
    with pytest.raises(lm.UsageError, match="unknown formulation"):
        lm.compare(net, ["product", "no-such"])
    with pytest.raises(lm.UsageError, match="lipsdp-neuron: it has 2:2"):
        lm.compare(net, ["lipsdp-neuron", "lipsdp-layer"], norm="inf:1")
    with pytest.raises(lm.UsageError, match="none of mine"):
        lm.compare(net, [mine.Declines])


# ---------------------------------------------------------------- estimates


def test_estimates_are_kept_apart(net: lm.Network) -> None:
    from lipmodel.estimates import ESTIMATES

    comparison = lm.compare(net, ["product"], estimates=True, time_limit=30)
    names = [e.name for e in comparison.estimates] + [name for name, _ in comparison.no_estimates]
    assert sorted(names) == sorted(ESTIMATES)
    assert comparison.estimates
    assert [entry.method for entry in comparison.entries] == ["product"]
    assert all(result.formulation == "product" for result in comparison.results)


@pytest.fixture(autouse=True)
def _no_children_left() -> Iterator[None]:
    """Every process of a comparison is over, and waited for, when it returns."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
