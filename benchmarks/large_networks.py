"""Networks of the size that image classification uses: how long reading them takes, and a proved product bound.

    python -m benchmarks.large_networks [--out benchmarks/results/large_networks.md]

Both are made here with random weights: a residual network with 20 layers for 32 x 32 images (He, Zhang, Ren & Sun 2016,
arXiv 1512.03385, section 4.2) and a plain one with 11 (Simonyan & Zisserman 2015, arXiv 1409.1556, configuration A).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

import lipmodel as lm


class Layers:
    """An ONNX graph that grows layer by layer, with weights of the usual random sizes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def stored(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, before: int, after: int, *, kernel: int = 3, stride: int = 1) -> str:
        weights = self.rng.standard_normal((after, before, kernel, kernel)) * np.sqrt(2.0 / (before * kernel**2))
        pads = [kernel // 2] * 4
        y = self.add("Conv", x, self.stored(weights), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        ones = np.ones(after)
        parts = (ones, 0.1 * self.rng.standard_normal(after), 0.1 * self.rng.standard_normal(after), ones * 1.2)
        return self.add("BatchNormalization", y, *(self.stored(p) for p in parts))

    def dense(self, x: str, before: int, after: int) -> str:
        weights = self.rng.standard_normal((after, before)) * np.sqrt(2.0 / before)
        return self.add("Gemm", x, self.stored(weights), self.stored(np.zeros(after)), transB=1)

    def model(self, output: str) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "image classifier",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def residual(depth: int = 20, seed: int = 0) -> Any:
    """ResNet-20 for CIFAR: three stages of 16, 32 and 64 channels; convolutions on the shortcuts that change shape."""
    net = Layers(seed)
    x = net.add("Relu", net.conv("x", 3, 16))
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", net.conv(x, channels, width, stride=stride))
            y = net.conv(y, width, width)
            short = x if channels == width else net.conv(x, channels, width, kernel=1, stride=stride)
            x, channels = net.add("Relu", net.add("Add", y, short)), width
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.model(net.dense(x, channels, 10))


def plain(seed: int = 0) -> Any:
    """VGG-11 for 32 x 32 images: eight convolutions with max pooling between them, three dense layers."""
    net = Layers(seed)
    x, channels = "x", 3
    for width, pool in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        x, channels = net.add("Relu", net.conv(x, channels, width)), width
        if pool:
            x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Flatten", x)
    for before, after in ((512, 512), (512, 512)):
        x = net.add("Relu", net.dense(x, before, after))
    return net.model(net.dense(x, 512, 10))


NETWORKS = {"resnet-20": residual, "vgg-11": plain}


def measure(name: str) -> dict[str, Any]:
    """Seconds and the bound for one network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        save(NETWORKS[name](), path)
        start = time.perf_counter()
        network = lm.load(path)
        read = time.perf_counter() - start
        result = lm.solve(network, "product")
        solved = time.perf_counter() - start - read
        return {
            "network": name,
            "parameters": network.source.parameters,
            "activations": lm.increments(network).neurons,
            "import": read,
            "product": solved,
            "bound": result.bound,
            "assurance": result.assurance,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the table there (Markdown)")
    args = parser.parse_args()
    lines = [
        "# Large networks",
        "",
        "| network | parameters | activations | import, s | product, s | bound L(2→2) | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        found = measure(name)
        lines.append(
            f"| {name} | {found['parameters']:,} | {found['activations']:,} | {found['import']:.1f} | "
            f"{found['product']:.1f} | {found['bound']:.5g} | {found['assurance']} |"
        )
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text(
            "\n".join([*lines, "", "Random weights; one BLAS thread; `python -m benchmarks.large_networks`.", ""])
        )


if __name__ == "__main__":
    main()
