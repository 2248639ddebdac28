"""`lipmodel compare`: the bounds of all methods on one network, in one table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import (
    add_command,
    add_network,
    add_problem,
    check_destination,
    chosen,
    network_of,
    screen_width,
    stdout_for_the_answer,
    whole_answer,
)

if TYPE_CHECKING:
    from lipmodel.comparison import Comparison
    from lipmodel.report.progress import Mode

_EXAMPLES = """\
  lipmodel compare net.onnx
  lipmodel compare net.onnx --norm inf:2 --time-limit 600 --plot bounds.svg
  lipmodel compare net.onnx -f product -f lipsdp-neuron -b native -b clarabel
  lipmodel compare net.onnx -f geolip -f ./mine.py:MyFormulation --outputs margin:3 --format md
  lipmodel compare net.onnx --domain box:0:1 --estimates --format csv > bounds.csv

Every line is proved, and is the bound of that method alone; the lower bound, from a pair of inputs, is the last line.
What did not apply or did not fit is listed with the reason (csv: in rows without a bound; json: on stderr).
An interrupt ends the method that runs, and prints the table of what is there."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "compare",
        help="the bounds of all methods on one network, in one table",
        description="Bound the Lipschitz constant of a network by every method that applies, each proved and each for "
        "itself, and print one table with the lower bound as its last line.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    parser.add_argument(
        "-f",
        "--formulation",
        metavar="NAME|FILE.py:CLASS",
        action="append",
        default=[],
        help="a formulation to compare, by name or from your own file (repeatable; default: every one that applies)",
    )
    add_problem(parser)
    solver = parser.add_argument_group("the solvers")
    solver.add_argument(
        "-b",
        "--backend",
        metavar="BACKEND",
        action="append",
        default=[],
        help="a solver for the formulations that need one (repeatable: each with each; default: the first that takes "
        "the model, see `lipmodel backends`)",
    )
    solver.add_argument(
        "--time-limit",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds for everything (default: 120); the cheapest methods go first, and each has an equal share of "
        "what is left",
    )
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--format",
        choices=("table", "md", "csv", "json"),
        default="table",
        help="table (default); md: for GitHub; csv: numbers in full precision; json: a list of the results, the best "
        "bound first, each with the certificate that `lipmodel verify` checks",
    )
    answer.add_argument(
        "--plot",
        metavar="OUT.svg",
        help="also draw bound against time to a .svg, .png or .pdf file (needs matplotlib: pip install "
        "'lipmodel[plot]')",
    )
    answer.add_argument(
        "--estimates",
        action="store_true",
        help="also print estimates, which may lie below the constant, in a table of their own",
    )
    loudness = answer.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no messages on stderr, errors excepted"
    )
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="what the methods say, and the solvers' own logs, on stderr; the traceback of an unexpected error",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare and print the table. Raises what `compare` raises, NothingProved where no method has a bound."""
    from lipmodel.errors import NothingProved

    if args.plot is not None:
        from lipmodel.report.plots import check_plot

        check_plot(args.plot)
        check_destination(args.plot, "--plot")
    network = network_of(args)
    from lipmodel.report.comparison_progress import ComparisonReporter

    with ComparisonReporter(_mode(args)) as reporter, stdout_for_the_answer(verbose=args.verbose):
        from lipmodel.comparison import compare

        comparison = compare(
            network,
            args.formulation or None,
            backends=args.backend,
            norm=args.norm,
            outputs=args.outputs,
            domain=args.domain,
            time_limit=args.time_limit,
            estimates=args.estimates,
            graph_input=chosen(args.graph_input),
            graph_output=chosen(args.graph_output),
            report=reporter.say,
            watch=reporter.watch,
            verbose=args.verbose,
        )
    with whole_answer():
        sys.stdout.write(_written(comparison, args.format))
        sys.stdout.flush()
        if args.format == "json" and not args.quiet:
            from lipmodel.report.comparison import skipped

            print("".join(f"{line}\n" for line in skipped(comparison)), end="", file=sys.stderr, flush=True)
        if args.plot is not None and comparison.answered:
            from lipmodel.report.plots import plot

            plot(comparison, args.plot)
    if not comparison.answered:
        raise NothingProved("no method has a proved bound")
    return 0


def _mode(args: argparse.Namespace) -> Mode:
    from lipmodel.report.progress import choose_mode

    mode = choose_mode(quiet=args.quiet, verbose=args.verbose)
    return "plain" if mode == "silent" and not args.quiet else mode


def _written(comparison: Comparison, form: str) -> str:
    import json

    from lipmodel.report.comparison import csv_text, markdown, text

    if form == "json":
        return json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"
    if form == "csv":
        return csv_text(comparison)
    return (markdown(comparison) if form == "md" else text(comparison, width=screen_width())) + "\n"
