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
    network_path,
    question,
    stdout_for_the_answer,
)

_EXAMPLES = """\
  lipmodel export net.onnx -f lipsdp-neuron net.dat-s
  lipmodel export net.onnx -f geolip --norm inf:2 net.dat-s && csdp net.dat-s net.sol
  lipmodel export net.onnx -f geolip --norm inf --outputs 3 net.dat-s

The file holds the scaled problem, which is what every backend gets; OUT.map.json says which number of the file is which
variable, its scale factor, and how the bound follows from the optimum. A solver's optimum is not a proved bound."""


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
        "out", metavar="OUT.dat-s", help="the file to write, SDPA sparse; its map OUT.dat-s.map.json goes beside it"
    )
    add_formulation(parser, required=True, help="the formulation, by name or from your own file")
    add_problem(parser)
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the two files and name them."""
    from lipmodel.io import check_format
    from lipmodel.report.tables import printable

    check_format(args.out)
    check_destination(args.out, "export")
    path = network_path(args.network)
    with stdout_for_the_answer(verbose=args.verbose):
        from lipmodel import pipeline

        written = pipeline.export(path, args.formulation, args.out, **question(args))
    print(printable(f"wrote {written[0]} and {written[1]}"))
    return 0
