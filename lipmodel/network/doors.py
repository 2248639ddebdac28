"""Everything that a network can come from: ONNX, NNet, lists of weights, a PyTorch module."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipmodel.errors import UsageError
from lipmodel.network.graph import Network

OTHER = (".nnet", ".npz", ".mat")
"""The suffixes of files that are not ONNX."""


def load(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    graph_input: str | Sequence[str] | None = None,
    graph_output: str | Sequence[str] | None = None,
    check: bool = True,
    activation: str | None = None,
    normalised: bool | None = None,
    input_shape: Sequence[int] | None = None,
) -> Network:
    """Read a network from a file, its bytes, an onnx.ModelProto or a torch.nn.Module.

    `.nnet` files: normalised says whether the inputs are the normalised ones that the weights are about (True, as in
    the ONNX versions of ACAS Xu) or the physical ones (False); it is needed where the file has means and ranges.
    `.npz` and `.mat` files of weights: activation names that of all hidden layers. A torch.nn.Module is exported in
    evaluation mode, for an input of `input_shape` (with its batch). All else is ONNX: graph_input, graph_output and
    check as in `lipmodel.network.onnx_import.load`.

    Raises RefusedInput with every reason, UsageError where there is no such file or an argument is missing.
    """
    from lipmodel.network import onnx_import

    given: dict[str, Any] = {"graph_input": graph_input, "graph_output": graph_output, "check": check}
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    suffix = "" if path is None else path.suffix.lower()
    if suffix not in (".npz", ".mat") and activation is not None:
        raise UsageError("an activation is named for .npz and .mat files of weights only")
    if suffix != ".nnet" and normalised is not None:
        raise UsageError("normalised says how a .nnet file is meant, and is for these only")
    if _is_module(source):
        return onnx_import.load(_exported(source, input_shape), **given)
    if input_shape is not None:
        raise UsageError("an input shape is given for a torch.nn.Module only")
    if path is None or suffix not in OTHER:
        return onnx_import.load(source, **given)
    if not path.is_file():
        raise UsageError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    return _nnet(path, normalised, given) if suffix == ".nnet" else _weights(path, activation)


def is_other(source: Any) -> bool:
    """Whether this is a path of a file that is not ONNX."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in OTHER


def _nnet(path: Path, normalised: bool | None, given: dict[str, Any]) -> Network:
    from lipmodel.network.nnet_source import onnx_of, read_nnet
    from lipmodel.network.onnx_import import load as load_onnx

    found = read_nnet(path)
    if normalised is None and found.is_normalised:
        raise UsageError(
            f"{path} has means and ranges of its inputs and outputs: say whether the constant is meant for normalised "
            "ones (normalised=True, --normalised yes; the ONNX versions of ACAS Xu are like that) or for physical ones "
            "(normalised=False, --normalised no)"
        )
    return load_onnx(onnx_of(found, physical=normalised is False), **given)


def _weights(path: Path, activation: str | None) -> Network:
    from lipmodel.network.sources import from_weights
    from lipmodel.network.weight_files import read_weights

    if activation is None:
        raise UsageError(f"{path} has weights only: name the activation of the hidden layers (--activation relu, tanh)")
    weights, biases = read_weights(path)
    return from_weights(weights, biases, activation=activation)


def _is_module(source: Any) -> bool:
    """Whether this is a torch.nn.Module, found out without importing torch."""
    return any(f"{c.__module__}.{c.__qualname__}" == "torch.nn.modules.module.Module" for c in type(source).__mro__)


def _exported(module: Any, input_shape: Sequence[int] | None) -> bytes:
    import torch

    if input_shape is None:
        raise UsageError("a torch.nn.Module needs the shape of its input: load(module, input_shape=(1, ...))")
    was_training = module.training
    content = io.BytesIO()
    parameter = next(module.parameters(), None)
    example = torch.zeros(tuple(input_shape), dtype=None if parameter is None else parameter.dtype)
    try:
        with torch.no_grad():
            torch.onnx.export(module.eval(), (example,), content, opset_version=17, dynamo=False)
    except Exception as error:
        raise UsageError(f"the module cannot be exported to ONNX: {error}") from error
    finally:
        module.train(was_training)
    return content.getvalue()
