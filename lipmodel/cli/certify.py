"""`lipmodel certify`: what another solver found for an exported problem, proved as a bound."""

from __future__ import annotations

import argparse
from typing import Any

from lipmodel.cli.common import (
    add_command,
    add_network,
    check_destination,
    network_of,
    stdout_for_the_answer,
)

_EXAMPLES = """\
  lipmodel export net.onnx -f lipsdp-neuron net.dat-s
  csdp net.dat-s net.sol
  lipmodel certify net.onnx --solution net.sol --map net.dat-s.map.json

Solutions: files of CSDP, SDPA, MOSEK (.sol, JSON) and HiGHS; JSON, NPY, NPZ or MAT with the vector x (or y) or the
values of the variables by name, in the units of the exported file. The solution is not trusted: its multipliers are
mended and a bound is proved from the network, as `solve` does."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "certify",
        help="prove a bound from the solution of an exported problem",
        description="Prove a bound from what another solver found for a problem that `lipmodel export` wrote.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    parser.add_argument("--solution", metavar="SOL", required=True, help="the solver's solution file")
    parser.add_argument(
        "--map", metavar="OUT.EXT.map.json", required=True, help="the map that `export` wrote beside the problem"
    )
    parser.add_argument("--time-limit", type=float, metavar="S", help="seconds for everything (default: no limit)")
    parser.add_argument(
        "--save", metavar="R.json", help="write the result with its certificate to a file, for `lipmodel verify`"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no messages on stderr, errors excepted")
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="all messages; the traceback of an unexpected error"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prove and print the answer. Raises what `foreign.certify_solution` and `solve.deliver` raise."""
    from lipmodel.cli.solve import deliver
    from lipmodel.report.progress import Reporter, choose_mode

    network = network_of(args)
    if args.save is not None:
        check_destination(args.save, "--save")
    # what is left out of a solution is told wherever stderr goes
    mode = choose_mode(quiet=args.quiet, verbose=True)
    with Reporter(mode) as reporter, stdout_for_the_answer(verbose=args.verbose):
        from lipmodel.foreign import certify_solution

        result = certify_solution(
            network,
            args.solution,
            args.map,
            time_limit=args.time_limit,
            report=reporter.say,
            verbose=args.verbose,
        )
    return deliver(result, args.save, as_json=args.json, assurance="proved")
