"""`lipmodel backends`: what there is to choose from with -b, and whether it can be used here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import add_command, screen_width

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend

_EXAMPLES = """\
  lipmodel backends
  lipmodel backends clarabel"""


def add(commands: Any) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "backends",
        help="list the solvers and whether they are installed",
        description="List the solvers with their state on this machine and what they can do, or show one of them.",
        examples=_EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a backend")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, or one backend."""
    from lipmodel.backends import backend

    lines = _listed() if args.name is None else _described(backend(args.name, usable=False))
    print("\n".join(lines))
    return 0


def _listed() -> list[str]:
    from lipmodel.backends import backend, backend_names
    from lipmodel.report.tables import table

    rows = []
    for name in backend_names():
        try:
            solver = backend(name, usable=False)
            c = solver.capabilities
            reads = "structure" if c.structured else "any model"
            state = str(solver.available())
            row = (name, state, reads, str(c.max_order), f"{c.precision:.0e}", c.licence, solver.description)
        except Exception as error:  # a third party's plug-in must not hide the others
            row = (name, f"broken: {type(error).__name__}: {error}", "", "", "", "", "")
        rows.append(row)
    header = ("backend", "state", "reads", "order", "precision", "licence", "description")
    note = [
        "",
        "The first in this order that takes a model is used; `order` is the largest matrix inequality that it is",
        "chosen for by itself (-b takes it at any size). None is trusted: bounds are proved from what they return.",
    ]
    return [*table(header, rows, width=screen_width()), *note]


def _described(solver: Backend) -> list[str]:
    from lipmodel.report.tables import facts, printable

    c = solver.capabilities
    pairs = [
        ("state", str(solver.available())),
        ("reads", "the factors of a model; may refuse a model" if c.structured else "the coefficients of any model"),
        ("cones", ", ".join(sorted(c.cones))),
        ("order", f"{c.max_order}: the largest matrix inequality that it is chosen for by itself"),
        ("precision", f"{c.precision:.0e} relative"),
        ("progress", "reported" if c.progress else "none"),
        ("licence", c.licence),
    ]
    return [f"{solver.name}: {printable(solver.description)}", "", *facts(pairs)]
