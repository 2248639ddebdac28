"""Convolutional networks: `fourier-lipsdp` beside the product of norms, LipLT and, on small ones, LipSDP-Neuron.

    python -m benchmarks.fourier NETS [--only NAME ...] [--out benchmarks/results/fourier.md]

NETS is a folder with the files named in FILES. Seconds are those of the processor, of one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lipmodel as lm
from lipmodel.fourier.stencils import pictures
from lipmodel.fourier.torus import layout_of, least_torus

FILES = (
    "digits/cnn2_seed0.onnx",
    "digits/cnn3_seed0.onnx",
    "glipsdp/cnn_C3_CH8.onnx",
    "glipsdp/cnn_C5_CH8.onnx",
    "pooling/mnist_avgpool.onnx",
    "marabou/KJ_TinyTaxiNet.onnx",
    "collins-rul/small_window_20.onnx",
    "oval21/base.onnx",
    "oval21/deep.onnx",
    "cifar-nhwc/small.onnx",
    "resnet/cifar_2b.onnx",
)
NEURON_ORDER = 2000
"""Order of the inequality up to which LipSDP-Neuron is solved as well."""


def bound(network: lm.Network, name: str, **options: bool) -> tuple[str, float]:
    """A proved bound as text, and the seconds that it took."""
    began = time.process_time()
    result = lm.solve(network, name, witness=False, options=options)
    return f"{result.bound:.5g}", time.process_time() - began


def row(path: Path, name: str) -> str:
    """The line of one network."""
    network = lm.load(path)
    system = lm.increments(network)
    found = pictures(system)
    torus = least_torus(found)
    order, count = layout_of(found, torus).size, len(torus.frequencies()[0])
    product, _ = bound(network, "product")
    liplt, _ = bound(network, "liplt")
    neuron, taken = bound(network, "lipsdp-neuron") if system.order <= NEURON_ORDER else ("", 0.0)
    began = time.process_time()
    result = lm.solve(network, "fourier-lipsdp", witness=False, options={"pixels": False})
    solved = time.process_time()
    assert lm.verify(network, result.certificate).bound == result.bound
    checked = time.process_time()
    small, more = bound(network, "fourier-lipsdp") if system.order <= NEURON_ORDER else ("", 0.0)
    cells = [name.removesuffix(".onnx"), f"{system.order:,}", f"{count} x {order}", product, liplt]
    cells += [f"{result.bound:.5g}", f"{solved - began:.1f}", f"{checked - solved:.1f}"]
    cells += [small, f"{more:.1f}" if small else "", neuron, f"{taken:.1f}" if neuron else ""]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", type=Path)
    parser.add_argument("--only", nargs="*", default=list(FILES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    heads = ["network", "order", "frequencies x order", "product", "liplt", "fourier-lipsdp, torus", "s", "verify, s"]
    heads += ["pixels", "s", "lipsdp-neuron", "s"]
    lines = ["# Convolutional networks by frequencies", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in args.only:
        lines.append(row(args.nets / name, name))
        print(lines[-1], flush=True)
        if args.out:
            end = "L(2→2), all outputs, global; seconds of the processor, one thread; `python -m benchmarks.fourier`."
            args.out.write_text("\n".join([*lines, "", end, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
