"""`lipmodel solve`: a proved bracket for the Lipschitz constant of a network."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import (
    add_command,
    add_formulation,
    add_network,
    add_problem,
    check_destination,
    key_values,
    network_of,
    plain_value,
    question,
    stdout_for_the_answer,
    whole_answer,
)

if TYPE_CHECKING:
    from lipmodel.result import Result

_EXAMPLES = """\
  lipmodel solve net.onnx
  lipmodel solve net.onnx -f geolip --norm inf:2 --save result.json
  lipmodel solve net.onnx -f lipsdp-neuron -b clarabel --outputs margin:3 --time-limit 60
  lipmodel solve net.onnx --norm inf --domain ball:x.npy:0.03
  lipmodel solve net.onnx --domain box:0:1 --float32
  lipmodel solve net.onnx -f ./mine.py:MyFormulation -o order=2 --json > result.json

The answer is the last line on stdout:  LOWER ≤ L(P→Q) ≤ UPPER   assurance, formulation, backend, seconds.
Both ends are proved; a number that is not proved never stands beside a ≤. Progress goes to stderr. With --float32 the
line before it says how far float32 outputs can be apart."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "solve",
        help="a proved bracket for the Lipschitz constant",
        description="Compute a proved upper bound and a witnessed lower bound of the Lipschitz constant of a network.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    add_formulation(
        parser,
        required=False,
        help="the formulation that gives the bound, by name or from your own file (default: one is chosen by norm and "
        "size, and named)",
    )
    add_problem(parser)
    solver = parser.add_argument_group("the solver")
    solver.add_argument(
        "-b",
        "--backend",
        metavar="BACKEND",
        help="the solver (default: the first that takes the model, see `lipmodel backends`)",
    )
    solver.add_argument(
        "--backend-option",
        metavar="K=V",
        action="append",
        default=[],
        help="a setting that is passed to the solver as it is (repeatable)",
    )
    solver.add_argument(
        "--tol", type=float, default=1e-6, metavar="TOL", help="relative tolerance on the bound (default: 1e-6)"
    )
    solver.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="seconds for everything; the best that is proved by then is the answer (default: no limit)",
    )
    solver.add_argument(
        "-j",
        "--jobs",
        type=int,
        metavar="N",
        help="processes for the programs of a family, such as one per output (default: one a core)",
    )
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--assurance",
        choices=("proved", "model"),
        default="proved",
        help="proved (default): derived from the ONNX file alone; model: may also use inequalities that the "
        "formulation states by itself, which the certificate then lists as assumptions",
    )
    answer.add_argument(
        "--float32",
        action="store_true",
        help="also state, and write into the certificate, what the bound says about the network as it is executed in "
        "float32, rounding errors included (needs --domain box:LO:HI; chains and graphs of affine operators and ReLU)",
    )
    answer.add_argument(
        "--save", metavar="R.json", help="write the result with its certificate to a file, for `lipmodel verify`"
    )
    answer.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    loudness = answer.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no messages on stderr, errors excepted"
    )
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="messages and the solver's own log on stderr, also where it is not a terminal; the traceback of an "
        "unexpected error",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Solve and print the answer. Raises what `pipeline.solve` and `deliver` raise."""
    from lipmodel.report.progress import Reporter, choose_mode

    network = network_of(args)
    if args.save is not None:
        check_destination(args.save, "--save")
    asked = question(args)
    settings = {k: plain_value(v) for k, v in key_values(args.backend_option, "--backend-option").items()}
    mode = choose_mode(quiet=args.quiet, verbose=args.verbose)
    with Reporter(mode) as reporter, stdout_for_the_answer(verbose=args.verbose):
        from lipmodel import pipeline

        result = pipeline.solve(
            network,
            args.formulation,
            **asked,
            backend=args.backend,
            tol=args.tol,
            time_limit=args.time_limit,
            jobs=args.jobs,
            backend_options=settings,
            assurance=args.assurance,
            float32=args.float32,
            report=reporter.say,
            progress=None if mode == "silent" else reporter.progress,
            verbose=args.verbose,
        )
    if mode == "silent" and result.reason and not (args.quiet or args.json):
        # a choice made for the user is announced, also where progress is not shown
        print(result.reason, file=sys.stderr, flush=True)
    return deliver(result, args.save, as_json=args.json, assurance=args.assurance)


def deliver(result: Result, save: str | None, *, as_json: bool, assurance: str) -> int:
    """Save a result, print it, and give the exit code. Raises UsageError where it cannot be saved, NothingProved."""
    import json

    from lipmodel.errors import NothingProved, UsageError

    unsaved: UsageError | None = None
    with whole_answer():
        if save is not None:
            try:
                result.save(save)
            except UsageError as error:
                unsaved = error
        answer = json.dumps(result.to_json(), indent=1, allow_nan=False) if as_json else _sentences(result)
        print(answer, flush=True)
    if unsaved is not None:
        raise unsaved
    if result.assurance not in ("proved", assurance):
        raise NothingProved(f"no bound could be proved at the requested assurance, {assurance!r}")
    return 0


def _sentences(result: Result) -> str:
    """The answer, and before it what it says about execution in float32 where that was asked for."""
    block = result.certificate and result.certificate["float_execution"]
    if not block:
        return result.sentence()
    from lipmodel.certify.execution import execution_line

    return f"{execution_line(result.spec, result.bound, float.fromhex(block['eps']))}\n{result.sentence()}"
