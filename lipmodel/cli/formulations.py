"""`lipmodel formulations`: what there is to choose from with -f."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import add_command, screen_width

if TYPE_CHECKING:
    from lipmodel.formulation import Formulation

_EXAMPLES = """\
  lipmodel formulations
  lipmodel formulations geolip
  lipmodel formulations ./mine.py:MyFormulation"""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "formulations",
        help="list the formulations, their norms and options",
        description="List the formulations with their norms, options and sources, or show one of them in full.",
        examples=_EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a formulation, by name or from a file (FILE.py:CLASS)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, or one formulation."""
    from lipmodel.formulation import formulation_class

    lines = _listed() if args.name is None else _described(args.name, formulation_class(args.name))
    print("\n".join(lines))
    return 0


def _listed() -> list[str]:
    from lipmodel.errors import LipmodelError
    from lipmodel.formulation import ALIASES, formulation_class, formulation_names
    from lipmodel.report.tables import table

    rows = []
    for name in formulation_names():
        try:
            cls = formulation_class(name)
        except LipmodelError as error:
            rows.append((name, "", "", str(error)))
            continue
        options = "\n".join(f"{key}={default!r}" for key, _, default, _ in _options(cls)) or "none"
        names = [name, *(f"  = {alias}" for alias, known in ALIASES.items() if known == name)]
        rows.append(("\n".join(names), norm_text(cls), options, _source(cls)))
    note = [
        "",
        "Norms are input:output. From what a formulation has, an output norm inf, single outputs and margins are",
        "reached one output at a time, an input norm 1 one input at a time. `lipmodel formulations NAME` shows one.",
    ]
    return [*table(("formulation", "norms", "options", "source"), rows, width=screen_width()), *note]


def _described(name: str, cls: type[Formulation]) -> list[str]:
    from lipmodel.report.tables import facts, printable

    lines = [printable(cls.name or name), ""]
    lines += [f"  {printable(line)}".rstrip() for line in _docstring(cls).splitlines()]
    lines += ["", *facts([("norms", norm_text(cls)), ("default", f"--norm {cls.default_norm}")]), ""]
    options = [
        (f"-o {key}=", f"{kind}, default {default!r}\n{help}".rstrip()) for key, kind, default, help in _options(cls)
    ]
    return [*lines, *(facts(options) or ["  no options"])]


def norm_text(cls: type[Formulation]) -> str:
    """The norm pairs that a formulation states."""
    rank = ("1", "2", "inf").index
    pairs = sorted(cls.norms, key=lambda pair: (rank(pair[0]), rank(pair[1])))
    return "all nine pairs" if len(pairs) == 9 else " ".join(f"{p}:{q}" for p, q in pairs)


def _source(cls: type[Formulation]) -> str:
    return _docstring(cls).split("\n\n")[0].replace("\n", " ")


def _docstring(cls: type[Formulation]) -> str:
    import inspect

    text = inspect.cleandoc(cls.__doc__ or "")
    # dataclasses give a class without a docstring its signature instead
    return text if text and not text.startswith(f"{cls.__name__}(") else "no description"


def _options(cls: type[Formulation]) -> list[tuple[str, str, Any, str]]:
    import dataclasses

    return [
        (f.name, type(f.default).__name__, f.default, str(f.metadata.get("help", "")))
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]
