"""What several commands share: the network, the question and their options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lipmodel.network.graph import Network


def add_command(commands: Any, name: str, *, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand with its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_network(parser: argparse.ArgumentParser) -> None:
    """The positional argument NET, and how to read what is no ONNX file."""
    parser.add_argument("network", metavar="NET", help="the network: an ONNX file, or .nnet, .npz, .mat (weights)")
    group = parser.add_argument_group("files that are not ONNX")
    group.add_argument("--activation", metavar="NAME", help="the activation of the hidden layers (.npz, .mat)")
    group.add_argument(
        "--normalised",
        choices=("yes", "no"),
        help="whether inputs and outputs are the normalised ones of a .nnet file, or the physical ones",
    )


def add_formulation(parser: argparse.ArgumentParser, *, required: bool, help: str) -> None:
    """The options -f and -o."""
    parser.add_argument("-f", "--formulation", metavar="NAME|FILE.py:CLASS", required=required, help=help)
    parser.add_argument(
        "-o",
        "--option",
        metavar="KEY=VAL",
        action="append",
        default=[],
        help="an option of the formulation (repeatable); `lipmodel formulations NAME` lists them",
    )


def add_problem(parser: argparse.ArgumentParser) -> None:
    """The options that say what is asked of the network."""
    group = parser.add_argument_group("the problem")
    group.add_argument(
        "--norm",
        metavar="P[:Q]",
        help="input norm and output norm among 1, 2, inf; P alone means P:P (default: the formulation's own, see "
        "`lipmodel formulations`)",
    )
    group.add_argument(
        "--domain",
        metavar="DOMAIN",
        default="global",
        help="global: the whole input space (default); box:LO:HI, where LO and HI are numbers, lists a,b,... or .npy "
        "files; ball:X:EPS, the ball of radius EPS around X in the input norm",
    )
    group.add_argument(
        "--outputs",
        metavar="WHICH",
        default="all",
        help="all (default); I for one output; I,J,... for the vector of these; margin:I for the differences "
        "y_I - y_j, each by itself; counted from 0 in the flattened output",
    )
    for side in ("input", "output"):
        group.add_argument(
            f"--graph-{side}",
            metavar="NAME",
            action="append",
            default=[],
            help=f"which graph {side} is meant, where the file has several (repeatable; all: their concatenation)"
            + ("; inputs that are not chosen are held constant" if side == "input" else ""),
        )


def add_verbose(parser: Any) -> None:
    """The option -v of commands that have no other messages."""
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an unexpected error")


def question(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `pipeline.solve` and `pipeline.export` behind the options of `add_problem` and -o."""
    return {
        "norm": args.norm,
        "outputs": args.outputs,
        "domain": args.domain,
        "options": key_values(args.option, "--option"),
        "graph_input": chosen(args.graph_input),
        "graph_output": chosen(args.graph_output),
    }


def key_values(texts: Sequence[str], flag: str) -> dict[str, str]:
    """The mapping behind repeated KEY=VAL. Raises UsageError."""
    from lipmodel.errors import UsageError

    result: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{flag} {text!r}: write KEY=VALUE")
        if key.strip() in result:
            raise UsageError(f"{flag} {key.strip()} is given twice")
        result[key.strip()] = value
    return result


def plain_value(text: str) -> bool | int | float | str:
    """The number or truth value that a text stands for, else the text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def chosen(names: Sequence[str]) -> str | list[str] | None:
    """A choice of graph inputs or outputs as the importer takes it."""
    if not names:
        return None
    return names[0] if len(names) == 1 else list(names)


def network_of(args: argparse.Namespace) -> Path | Network:
    """The path of an ONNX file that can be opened; a network in another format, read. Raises LipmodelError."""
    from lipmodel.network.doors import is_other, load

    path = network_path(args.network)
    given = {"activation": args.activation, "normalised": None if args.normalised is None else args.normalised == "yes"}
    if is_other(path) or any(v is not None for v in given.values()):
        return load(path, **given)
    return path


def network_path(text: str) -> Path:
    """The path of a network that can be opened. Raises RefusedInput."""
    from pathlib import Path

    from lipmodel.errors import Reason, RefusedInput

    path = Path(text)
    try:
        if path.is_dir():
            message = "this is a directory, not an ONNX file"
        elif not path.exists():
            message = "there is no such file"
        else:
            with path.open("rb"):
                return path
    except (OSError, ValueError) as error:
        message = f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    raise RefusedInput(text, [Reason(kind="file-format", where="", message=message)])


def check_destination(text: str, flag: str) -> None:
    """Raises UsageError where a file cannot be written: better before the work than after it."""
    from pathlib import Path

    from lipmodel.errors import UsageError

    path = Path(text)
    if path.is_dir():
        raise UsageError(f"{flag} {text}: this is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {text}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{flag} {text}: the directory {path.parent} cannot be written to")


@contextmanager
def whole_answer() -> Iterator[None]:
    """No interrupt cuts an answer in two: what is known is written, and then the command is over anyway."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def stdout_for_the_answer(*, verbose: bool = False) -> Iterator[None]:
    """Send to stderr what solvers, and formulations of users, print to stdout: the answer stands there alone.

    Python's warnings are shown with `verbose` only.
    """
    import warnings

    sys.stdout.flush()
    saved = None
    with suppress(OSError):
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        if saved is not None:
            import ctypes

            # C libraries buffer their own output: what they hold back belongs to stderr as well
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 1)
            os.close(saved)


def screen_width() -> int | None:
    """The width of the terminal that stdout is, None where it is none."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns
