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
    check_destination,
    network_of,
    question,
    stdout_for_the_answer,
)

_EXAMPLES = """\
  lipmodel inspect net.onnx
  lipmodel inspect net.onnx -f geolip --norm inf:2
  lipmodel inspect net.onnx -f chordal-lipsdp -b clarabel --plan
  lipmodel inspect net.onnx -f lipsdp-neuron --latex
  lipmodel inspect net.onnx --dot net.dot"""


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
        help="show the way from the network to a bound, with the predicted size after every step, and why other ways "
        "were not chosen (without -f, for the formulation that `solve` would choose)",
    )
    parser.add_argument(
        "--latex", action="store_true", help="print the model as LaTeX (amsmath), and nothing else, on stdout"
    )
    parser.add_argument("--dot", metavar="FILE", help="also write the network as a graph for Graphviz (dot -Tsvg FILE)")
    parser.add_argument(
        "-b",
        "--backend",
        metavar="NAME",
        help="the solver that the plan is for (default: the one of `solve`)",
    )
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the summary. Raises RefusedInput where `solve` would for a reason that no choice or domain can mend."""
    from lipmodel.cli.examine import report
    from lipmodel.cli.statement import Shown

    network = network_of(args)
    if args.dot is not None:
        check_destination(args.dot, "--dot")
    asked = question(args)
    with stdout_for_the_answer(verbose=args.verbose):
        shown = Shown(backend=args.backend, plan=args.plan, latex=args.latex)
        lines = report(network, args.formulation, asked, shown, args.dot)
    print("\n".join(lines))
    return 0
