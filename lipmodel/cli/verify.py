"""`lipmodel verify`: does a certificate prove what it claims about an ONNX file?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import add_command, add_network, add_verbose, network_of, stdout_for_the_answer

if TYPE_CHECKING:
    from lipmodel.certify.verify import Verdict

_EXAMPLES = """\
  lipmodel solve net.onnx --save result.json
  lipmodel verify net.onnx result.json

The inequality is rebuilt from the ONNX file and decided in exact arithmetic; neither the solver nor the formulation is
trusted. Exit code 6, with the reason, for every fault of the certificate."""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "verify",
        help="check a certificate in exact arithmetic",
        description="Check the certificate of a saved result against the ONNX file, in exact arithmetic.",
        examples=_EXAMPLES,
    )
    add_network(parser)
    parser.add_argument(
        "certificate", metavar="R.json", help="a result that `solve --save` wrote, or the certificate in it"
    )
    parser.add_argument("--json", action="store_true", help='print {"verified": true or false, ...} on stdout')
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print the verdict."""
    import json
    from pathlib import Path

    from lipmodel.certify.execution import STATEMENT, execution_line
    from lipmodel.certify.verify import verify
    from lipmodel.errors import LipmodelError, Refuted
    from lipmodel.report.tables import printable

    network = network_of(args)
    try:
        try:
            with stdout_for_the_answer(verbose=args.verbose):
                verdict = verify(network, Path(args.certificate))
        except (LipmodelError, OSError, MemoryError):
            raise
        except Exception as error:
            if args.verbose:
                import traceback

                traceback.print_exc()
            # a certificate may hold anything; one whose check breaks off has proved nothing
            raise Refuted(f"its check broke off: {type(error).__name__}: {error}") from error
    except Refuted as error:
        if args.json:
            print(json.dumps({"verified": False, "reason": str(error)}, indent=1))
        else:
            print(f"refuted: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(verdict.to_json(), indent=1, allow_nan=False))
        return 0
    for statement in verdict.assumptions:
        print(f"assuming: {printable(statement)}")
    print(f"network read by: {printable(verdict.read_by)}")
    if verdict.bound is not None and verdict.float32_eps is not None:
        print(f"float32: {STATEMENT}")
        print(execution_line(verdict.spec, verdict.bound, verdict.float32_eps))
    print(verdict_line(verdict))
    return 0


def verdict_line(verdict: Verdict) -> str:
    """The one-line verdict; digits are rounded away from the bracket, so that what is printed is proved too."""
    from lipmodel.report.tables import printable
    from lipmodel.result import rounded
    from lipmodel.spec import Global

    p, q = verdict.spec.norms
    outputs = "" if verdict.spec.outputs.kind == "all" else f", outputs {verdict.spec.outputs}"
    outputs += "" if isinstance(verdict.spec.domain, Global) else f", {verdict.spec.domain}"
    outputs += "".join(f", {printable(choice)}" for choice in verdict.chosen)
    lower = "" if verdict.lower_bound is None else f"{rounded(verdict.lower_bound, up=False)} ≤ "
    upper = "   (no upper bound is claimed)" if verdict.bound is None else f" ≤ {rounded(verdict.bound, up=True)}"
    word = "verified" if not verdict.assumptions else "verified under these assumptions"
    return f"{word}: {lower}L({p}→{q}{outputs}){upper}   (exact arithmetic, sha256 {verdict.sha256})"
