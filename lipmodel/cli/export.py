"""`lipmodel export`: the problem as a file for any solver, and a map that leads its solution back."""

from __future__ import annotations

import argparse
from typing import Any

from lipmodel.cli.common import (
    add_command,
    add_formulation,
    add_network,
    add_problem,
    add_verbose,
    check_destination,
    network_of,
    question,
    stdout_for_the_answer,
)

_EXAMPLES = """\
  lipmodel export net.onnx -f lipsdp-neuron net.dat-s
  lipmodel export net.onnx -f geolip --norm inf:2 net.dat-s && csdp net.dat-s net.sol
  lipmodel export net.onnx -f geolip --norm inf --outputs 3 --form standard net.cbf.gz

OUT.EXT: .dat-s (SDPA, CSDP), .cbf (Conic Benchmark Format), .mat (SeDuMi), .ptf, .task, .jtask (MOSEK, which writes
them), .mps and .lp (linear programs), .model.json (lipmodel's own, factors kept); .gz may follow, but for .mat.
The file holds the scaled problem, which is what every backend gets; OUT.EXT.map.json says what its numbers mean, and is
all that `lipmodel certify` needs to bring a solution home. A solver's optimum is not a proved bound."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "export",
        help="write the problem to a solver file",
        description="Write the (scaled) problem of a formulation to a solver file, with a map beside it.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    parser.add_argument(
        "out", metavar="OUT.EXT", help="the file to write; its suffix names the format, its map goes beside it"
    )
    add_formulation(parser, required=True, help="the formulation, by name or from your own file")
    add_problem(parser)
    parser.add_argument(
        "--form",
        choices=("geometric", "standard"),
        help="geometric: matrix inequalities in the variables of the model; standard: the dual of that, with matrix "
        "variables (default: what suits the format; SDPA and SeDuMi files state both)",
    )
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the two files and name them."""
    from lipmodel.io import format_of
    from lipmodel.report.tables import printable

    format_of(args.out)
    check_destination(args.out, "export")
    network = network_of(args)
    with stdout_for_the_answer(verbose=args.verbose):
        from lipmodel.exporting import export

        written = export(network, args.formulation, args.out, **question(args), form=args.form)
    print(printable(f"wrote {written[0]} and {written[1]}"))
    return 0
