"""The command line: `lipmodel COMMAND ...`, one file per command.

Exit codes: 0 answered · 2 usage · 3 refused input · 4 backend missing · 5 nothing proved · 6 certificate refuted ·
70 a defect of lipmodel · 130 interrupted · 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

DEFECT, INTERRUPTED, BROKEN_PIPE = 70, 130, 141

_EPILOG = """\
examples:
  lipmodel solve net.onnx                       a proved bracket for L(2→2), the formulation chosen by size
  lipmodel solve net.onnx -f geolip --norm inf:2 --save result.json
  lipmodel compare net.onnx                     the bounds of all methods in one table
  lipmodel verify net.onnx result.json          check the certificate in exact arithmetic
  lipmodel inspect net.onnx                     what is in the file

exit codes: 0 answered · 2 usage · 3 refused input · 4 backend missing or unlicensed · 5 nothing could be proved ·
6 certificate refuted · 70 a defect of lipmodel · 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. argv: the arguments without the program's name (None: those of the process)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        _speak_unicode(getattr(sys, name))
    try:
        code = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from lipmodel import __version__
    from lipmodel.cli import backends, certify, compare, export, formulations, inspect, solve, verify

    top = argparse.ArgumentParser(
        prog="lipmodel",
        description="Certified Lipschitz constants of neural networks: every bound that is printed is proved.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"lipmodel {__version__}", help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in (solve, compare, verify, inspect, export, certify, formulations, backends):
        module.add(commands)
    return top


def _main(argv: Sequence[str] | None) -> int:
    verbose = False
    try:
        args = parser().parse_args(argv)
        verbose = bool(getattr(args, "verbose", False))
        code: int = args.run(args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        from lipmodel.errors import LipmodelError

        if isinstance(error, LipmodelError):
            complain(str(error))
            return error.exit_code
        if verbose:
            import traceback

            traceback.print_exc()
        complain(_defect(error, verbose))
        return DEFECT
    return code


def complain(message: str) -> None:
    """An error message on stderr."""
    from lipmodel.report.tables import printable

    lines = message.split("\n")
    print("\n".join([f"lipmodel: {printable(lines[0])}", *map(printable, lines[1:])]), file=sys.stderr, flush=True)


def _defect(error: Exception, verbose: bool) -> str:
    from lipmodel import __version__

    if isinstance(error, MemoryError):
        return "out of memory: a smaller problem (-f product, fewer --outputs) needs less"
    text = " ".join(str(error).split())
    what = f"unexpected {type(error).__name__}: {text}" if text else f"unexpected {type(error).__name__}"
    how = "with the traceback above" if verbose else "with the traceback that the option -v shows"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{what}; this is a defect: please report it {how} (lipmodel {__version__}, Python {python}, {sys.platform})"


def _speak_unicode(stream: IO[str]) -> None:
    """Switch a stream to UTF-8 where its encoding lacks the signs of an answer (≤, →)."""
    encoding = getattr(stream, "encoding", None)
    reconfigure = getattr(stream, "reconfigure", None)
    if encoding is None or reconfigure is None:
        return
    try:
        "≤→·".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        reconfigure(encoding="utf-8")
    reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let the interpreter flush its streams to nowhere on exit: their reader has gone."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
