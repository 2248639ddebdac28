"""Networks that are not ONNX files: NNet, lists of weights, PyTorch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lipmodel as lm
from lipmodel.errors import RefusedInput, UsageError
from lipmodel.network.nnet_source import read_nnet

SHARED = Path(__file__).resolve().parents[2] / "shared"

NNET = """// two inputs, three neurons, one output
2,2,1,3,
2,3,1,
0,
-1.0,-2.0,
1.0,2.0,
0.5,0.0,10.0,
2.0,4.0,3.0,
1.0,-1.0,
0.5,2.0,
-1.5,0.25,
0.1,
-0.2,
0.0,
1.0,-2.0,0.5,
0.75,
"""
W1 = np.array([[1.0, -1.0], [0.5, 2.0], [-1.5, 0.25]])
W2 = np.array([[1.0, -2.0, 0.5]])


@pytest.fixture
def nnet(tmp_path: Path) -> Path:
    path = tmp_path / "net.nnet"
    path.write_text(NNET)
    return path


def test_the_choice_of_inputs_is_asked_for(nnet: Path) -> None:
    with pytest.raises(UsageError, match="normalised=True"):
        lm.load(nnet)


def test_both_meanings_are_read(nnet: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5))
    b1 = np.array([[0.1], [-0.2], [0.0]])
    inner = W2 @ np.maximum(W1 @ x + b1, 0.0) + 0.75
    np.testing.assert_allclose(lm.load(nnet, normalised=True).evaluate(x), inner, rtol=1e-12)
    physical = x * np.array([[2.0], [4.0]]) + np.array([[0.5], [0.0]])
    np.testing.assert_allclose(lm.load(nnet, normalised=False).evaluate(physical), inner * 3.0 + 10.0, rtol=1e-12)


def test_constants_differ_and_certificates_are_verified(nnet: Path, tmp_path: Path) -> None:
    bounds = []
    for normalised in (True, False):
        network = lm.load(nnet, normalised=normalised)
        result = lm.solve(network, "lipsdp-neuron")
        assert lm.verify(lm.load(nnet, normalised=normalised), result).bound == result.bound
        bounds.append(result.bound)
    assert bounds[1] < 0.9 * 3.0 * bounds[0] / 2.0 * 1.2
    assert bounds[0] != bounds[1]


def test_paths_of_other_files_are_taken_as_those_of_onnx_files_are(nnet: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.nnet"
    path.write_text("2\n1, 1, 1\n0\n0\n0\n0\n0\n2\n0\n3\n0\n")
    result = lm.solve(path)
    assert lm.verify(path, result).bound == result.bound
    for ask in (lambda: lm.solve(nnet), lambda: lm.verify(nnet, result)):
        with pytest.raises(UsageError, match="normalised=True"):
            ask()


def test_a_file_that_only_holds_the_place_of_a_normalisation_needs_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "tiny.nnet"
    path.write_text("2\n1, 1, 1\n0\n0\n0\n0\n0\n2\n0\n3\n0\n")
    assert lm.solve(lm.load(path)).bound == pytest.approx(6.0, rel=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.0,-1.0,\n", "1.0,\n", "line 9"),
        ("0.75,\n", "", "lines of numbers"),
        ("0.75,", "x", "line 16"),
        ("0.75,", "nan", "NaN"),
        ("2.0,4.0,3.0,", "2.0,0.0,3.0,", "not positive"),
        ("2,3,1,\n", "2,3,\n", "layers with the sizes"),
        (NNET, "1,2\n", "fewer than 7"),
    ],
)
def test_broken_files_are_refused(nnet: Path, old: str, new: str, words: str) -> None:
    nnet.write_text(NNET.replace(old, new, 1))
    with pytest.raises(RefusedInput, match=words):
        lm.load(nnet, normalised=True)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        lm.load(tmp_path / "none.nnet")


@pytest.mark.skipif(not (SHARED / "nets" / "nnet").exists(), reason="no shared data beside the checkout")
def test_published_files_are_read() -> None:
    for path in sorted((SHARED / "nets" / "nnet").glob("*.nnet")):
        found = read_nnet(path)
        lm.load(path, normalised=False if found.is_normalised else None)
    acas = lm.load(SHARED / "nets" / "nnet" / "acas.nnet", normalised=True)
    assert (acas.input_size, acas.output_size) == (5, 5)


def chain() -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((4, 3)), rng.standard_normal((2, 4))], [rng.standard_normal(4), rng.standard_normal(2)]


def test_lists_of_weights_in_numpy_files(tmp_path: Path) -> None:
    weights, biases = chain()
    expected = lm.from_weights(weights, biases, activation="tanh").source.sha256
    np.savez(tmp_path / "a.npz", W1=weights[0], b1=biases[0], W2=weights[1], b2=biases[1])
    assert lm.load(tmp_path / "a.npz", activation="tanh").source.sha256 == expected
    np.savez(tmp_path / "b.npz", *weights)
    assert lm.load(tmp_path / "b.npz", activation="tanh").input_size == 3
    with pytest.raises(UsageError, match="activation"):
        lm.load(tmp_path / "a.npz")


def test_lists_of_weights_in_matlab_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    weights, biases = chain()
    expected = lm.from_weights(weights, biases, activation="relu").source.sha256
    cells = [np.empty((1, 2), dtype=object), np.empty((1, 2), dtype=object)]
    for k in range(2):
        cells[0][0, k], cells[1][0, k] = weights[k], biases[k][:, None]
    savemat(tmp_path / "a.mat", {"weights": cells[0], "biases": cells[1]})
    assert lm.load(tmp_path / "a.mat", activation="relu").source.sha256 == expected


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", something=np.ones(3))
    with pytest.raises(RefusedInput, match="something"):
        lm.load(tmp_path / "a.npz", activation="relu")
    np.savez(tmp_path / "b.npz", W1=np.ones((2, 2)), b1=np.ones(2), W2=np.ones((1, 2)))
    with pytest.raises(RefusedInput, match="1 biases for 2 weights"):
        lm.load(tmp_path / "b.npz", activation="relu")
    np.savez(tmp_path / "c.npz", weights=np.array([np.ones((2, 2)), np.ones((1, 2))], dtype=object))
    with pytest.raises(RefusedInput, match="plain arrays"):
        lm.load(tmp_path / "c.npz", activation="relu")
    for suffix in (".npz", ".mat"):
        (tmp_path / f"d{suffix}").write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(RefusedInput, match="this is not"):
            lm.load(tmp_path / f"d{suffix}", activation="relu")


def test_arguments_that_do_not_apply_are_refused(nnet: Path) -> None:
    with pytest.raises(UsageError, match="files of weights only"):
        lm.load(nnet, activation="relu")
    with pytest.raises(UsageError, match="for these only"):
        lm.load("net.onnx", normalised=True)
    with pytest.raises(UsageError, match="Module only"):
        lm.load("net.onnx", input_shape=(1, 2))


def test_a_torch_module_is_exported() -> None:
    torch = pytest.importorskip("torch", reason="torch is an optional extra")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(5, 2))
    network = lm.load(module, input_shape=(1, 3))
    assert module.training
    x = torch.randn(1, 3)
    expected = module.eval()(x).detach().numpy().ravel()
    np.testing.assert_allclose(network.evaluate(x.numpy()), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="input_shape"):
        lm.load(module)
