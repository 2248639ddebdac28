"""`lipmodel inspect`: what is in a file, what a formulation states about it, and how that would be solved."""

from __future__ import annotations

import argparse
from typing import Any

from lipmodel.cli.common import (
    add_command,
    add_formulation,
    add_network,
    add_problem,
    add_verbose,
    network_path,
    question,
    stdout_for_the_answer,
)

_EXAMPLES = """\
  lipmodel inspect net.onnx
  lipmodel inspect net.onnx -f geolip --norm inf:2
  lipmodel inspect net.onnx --plan"""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "inspect",
        help="show a network, and what a formulation states about it",
        description="Show a network as it is read: shapes, nodes, activations with their slopes. With -f, also the "
        "model that the formulation states, its predicted size and the backend that would solve it.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    add_formulation(parser, required=False, help="show what this formulation states")
    add_problem(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show the way from the network to a bound (without -f, for the formulation that `solve` would choose)",
    )
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the summary. Raises RefusedInput where `solve` would for a reason that no choice or domain can mend."""
    from lipmodel.cli.examine import report

    path = network_path(args.network)
    asked = question(args)
    with stdout_for_the_answer(verbose=args.verbose):
        lines = report(path, args.formulation, asked, plan=args.plan)
    print("\n".join(lines))
    return 0
