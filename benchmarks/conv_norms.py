"""Spectral norms of convolutions: what the torus gives to the product bound, against other methods, and what it costs.

    python -m benchmarks.conv_norms [FOLDER] [--largest 32000] [--skip PART ...] [--out FOLDER]

Three tables, written to conv_norms.md: networks below FOLDER, the product bound (2:2) with and without the torus;
single convolutions, the torus beside the bounds of the literature (those in plain floating point, for comparison);
layers of full size, seconds to prove and to verify. Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import lipmodel as lm
from lipmodel.certify import conv_norms as exact
from lipmodel.certify.product_rule import check_product, product_system, prove_product
from lipmodel.errors import LipmodelError
from lipmodel.network.conv import Conv, Pool
from lipmodel.network.linear import Composition, LinearMap, Transposed
from lipmodel.ranges import conv_spectral, norms
from lipmodel.ranges.conv_symbol import sampled_symbol, symbol_of
from lipmodel.result import write_atomically

Array = np.ndarray[Any, Any]


# ------------------------------------------------------------------------------------------------------ networks


def has_convolutions(map: LinearMap) -> bool:
    """Whether a map is, or is composed of, convolutions among others."""
    if isinstance(map, Composition):
        return any(has_convolutions(factor) for factor in map.factors)
    return isinstance(map, Conv | Pool) or (isinstance(map, Transposed) and has_convolutions(map.map))


@contextmanager
def without_torus() -> Iterator[None]:
    """Norms as they are without this method: expanded matrices up to a size, sums of moduli beyond."""
    known = conv_spectral.structured_norm
    conv_spectral.structured_norm = lambda map: math.inf
    try:
        yield
    finally:
        conv_spectral.structured_norm = known


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the processor seconds that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def network_row(path: Path, name: str, largest: int) -> str | None:
    """The product bound of a network before and after, None where it has no convolutions or too many activations."""
    try:
        system = lm.increments(lm.load(path))
    except LipmodelError:
        return None
    maps = [map for a in system.activations for map in a.pre.blocks.values()] + list(system.output.blocks.values())
    if not any(map(has_convolutions, maps)) or not 0 < system.neurons <= largest:
        return None
    seen = product_system(system)
    with without_torus():
        before = prove_product(seen, "2", "2").bound
    proved, solve = timed(lambda: prove_product(seen, "2", "2"))
    claims = proved.claims()
    _, verify = timed(lambda: check_product(seen, "2", "2", proved.bound, claims))
    ratio = before / proved.bound if 0 < proved.bound < math.inf else math.nan
    bounds = f"{before:.6g} | {proved.bound:.6g} | {ratio:.3g}"
    return f"| {name} | {system.neurons} | {bounds} | {solve:.2f} | {verify:.2f} |"


# ------------------------------------------------------------------------------------------- methods, for comparison


def gram_iteration(kernel: Array, steps: int = 5) -> float:
    """(max_i sum |K_t|)^(1/2^t) of the iterated autocorrelation of the kernel (Delattre et al. 2023, 2024)."""
    d = kernel.ndim - 2
    reach = [2**steps * (k - 1) + 1 for k in kernel.shape[2:]]
    wave = np.fft.fftn(kernel, s=reach, axes=range(2, 2 + d))
    blocks = np.moveaxis(wave.reshape(*kernel.shape[:2], -1), -1, 0)
    gram, scale = np.swapaxes(blocks.conj(), 1, 2) @ blocks, 0.0
    for _ in range(steps - 1):
        size = float(np.abs(gram).max())
        gram, scale = (gram / size) @ (gram / size), 2.0 * (scale + math.log(size))
    taps = np.fft.ifftn(np.moveaxis(gram, 0, -1).reshape(*gram.shape[1:], *reach), axes=range(2, 2 + d)).real
    sums = np.abs(taps).sum(axis=tuple(range(1, 2 + d))).max()
    return math.exp((math.log(float(sums)) + scale) / 2**steps)


def lip_bound(kernel: Array, samples: int) -> float:
    """The largest Frobenius norm of the symbol on a grid, times the factor of the grid (Araujo et al. 2021)."""
    spans = [2 * -(-(k - 1) // 2) for k in kernel.shape[2:]]
    wave = np.fft.fftn(kernel, s=[samples] * len(spans), axes=range(2, kernel.ndim))
    factor = math.prod(samples / (samples - span) for span in spans)
    return math.sqrt(factor * float((np.abs(wave) ** 2).sum(axis=(0, 1)).max()))


def fantastic_four(kernel: Array) -> float:
    """sqrt(h w) times the least spectral norm of four unfoldings (Singla & Feizi 2021); two-dimensional kernels."""
    o, i, h, w = kernel.shape
    orders = (((0, 2, 1, 3), o * h), ((0, 3, 1, 2), o * w), ((0, 1, 2, 3), o), ((1, 0, 2, 3), i))
    return math.sqrt(h * w) * min(float(np.linalg.norm(kernel.transpose(t).reshape(r, -1), 2)) for t, r in orders)


def a_conv(kernel: Array, n: int, stride: int = 1) -> Conv:
    """A convolution of an n x n image with the padding that keeps its size (up to the stride)."""
    pad, k = (kernel.shape[2] - 1) // 2, kernel.shape[2]
    m = (n + 2 * pad - k) // stride + 1
    return Conv(
        kernel=kernel,
        input_shape=(1, kernel.shape[1], n, n),
        output_spatial=(m, m),
        strides=(stride,) * 2,
        pads=(pad,) * 2,
        dilations=(1, 1),
    )


def method_row(name: str, kernel: Array, n: int) -> str:
    """The torus beside everything else, stride 1."""
    map = a_conv(kernel, n)
    dense = float(np.linalg.norm(map.enclosure().dense().center, 2)) if min(map.shape) <= 3000 else math.nan
    entries = norms.entry_norms(map)
    cheap = conv_spectral.entry_bound(entries)
    symbol = symbol_of(map, kernel)
    coarse = None if symbol is None else sampled_symbol(symbol, symbol.work // 8)
    grid = math.nan if coarse is None else float(coarse[1]) * conv_spectral.estimated_norm(coarse[0])
    bounds = [float(conv_spectral.structured_norm(map)), gram_iteration(kernel), grid, lip_bound(kernel, 2 * n)]
    bounds += [fantastic_four(kernel), float(cheap)]
    return f"| {name} | {dense:.5g} | " + " | ".join(f"{bound:.5g}" for bound in bounds) + " |"


# ------------------------------------------------------------------------------------------------------- full size


def layer_row(outputs: int, inputs: int, k: int, n: int, stride: int) -> str:
    """Seconds to prove and to verify one random layer, and by how much the bound exceeds the torus."""
    kernel = np.random.default_rng(0).standard_normal((outputs, inputs, k, k)) / math.sqrt(inputs * k * k)
    map = a_conv(kernel, n, stride)
    bound, solve = timed(lambda: conv_spectral.structured_norm(map))
    fine, verify = timed(lambda: exact.structured_norm_at_most(map, bound))
    symbol = symbol_of(map, kernel)
    assert symbol is not None
    sampled = sampled_symbol(symbol, conv_spectral.WORK_LIMIT)
    factor = math.nan if sampled is None else float(sampled[1])
    cheap = float(conv_spectral.entry_bound(norms.entry_norms(map)))
    size = f"{inputs} → {outputs}, {k}×{k}, {n}×{n}" + (f", stride {stride}" if stride > 1 else "")
    verdict = f"{verify:.2f}" if fine else "REFUSED"
    return f"| {size} | {cheap:.5g} | {float(bound):.5g} | {factor:.3g} | {solve:.2f} | {verdict} |"


LAYERS = [
    (16, 3, 3, 32, 1),
    (32, 32, 3, 32, 1),
    (64, 64, 3, 32, 1),
    (128, 64, 3, 32, 2),
    (128, 128, 3, 16, 1),
    (64, 3, 7, 224, 2),
    (256, 256, 3, 8, 1),
    (256, 256, 3, 16, 1),
    (512, 512, 3, 4, 1),
    (512, 512, 3, 8, 1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--largest", type=int, default=32_000, help="activations beyond which a network is left out")
    parser.add_argument("--skip", choices=["networks", "methods", "layers"], action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    lines = [
        "# Spectral norms of convolutions",
        "",
        "Written by `python -m benchmarks.conv_norms`; processor seconds.",
        "",
    ]
    if arguments.folder is not None and "networks" not in arguments.skip:
        lines += ["## Product bound (2:2) of networks, without and with the torus", ""]
        lines += [
            "| network | activations | without | with | ratio | prove s | verify s |",
            "|---|---|---|---|---|---|---|",
        ]
        for path in sorted(arguments.folder.rglob("*.onnx")):
            row = network_row(path, str(path.relative_to(arguments.folder)), arguments.largest)
            if row is not None:
                print(row, flush=True)
                lines.append(row)
        lines.append("")
    if "methods" not in arguments.skip:
        lines += ["## Methods, stride 1, padding that keeps the size", ""]
        lines += [
            "`torus` is proved; `matrix` is the norm of the expanded matrix, and the other columns are bounds of the",
            "literature in plain floating point: iterated autocorrelation (5 steps), an eighth of the frequencies with",
            "their factor, LipBound on 2n frequencies with its factor, four unfoldings, sqrt(1-norm inf-norm).",
            "",
            "| kernel | matrix | torus | autocorrelation | fewer frequencies | LipBound | four unfoldings | sums |",
            "|---|---|---|---|---|---|---|---|",
        ]
        rng = np.random.default_rng(0)
        for (outputs, inputs), k, n in product([(3, 2), (16, 4), (16, 16)], (3, 5), (8, 32)):
            row = method_row(f"{inputs} → {outputs}, {k}×{k}, n = {n}", rng.standard_normal((outputs, inputs, k, k)), n)
            print(row, flush=True)
            lines.append(row)
        lines.append("")
    if "layers" not in arguments.skip:
        lines += ["## Layers of full size, random weights", ""]
        lines += ["`factor`: what fewer frequencies cost where all of them would be too much work.", ""]
        lines += ["| layer | sums of moduli | torus | factor | prove s | verify s |", "|---|---|---|---|---|---|"]
        for layer in LAYERS:
            row = layer_row(*layer)
            print(row, flush=True)
            lines.append(row)
        lines.append("")
    write_atomically(arguments.out / "conv_norms.md", "\n".join(lines))


if __name__ == "__main__":
    main()
