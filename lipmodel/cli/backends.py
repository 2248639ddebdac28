"""`lipmodel backends`: what there is to choose from with -b, and whether it can be used here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lipmodel.cli.common import add_command, screen_width

if TYPE_CHECKING:
    from lipmodel.backends.base import Backend, BackendOption, Capabilities

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
    from lipmodel.backends.base import Unlicensed
    from lipmodel.report.tables import table

    rows: list[tuple[str, ...]] = []
    for name in backend_names():
        try:
            solver = backend(name, usable=False)
            c = solver.capabilities
            state = solver.available()
            said = "unlicensed" if isinstance(state, Unlicensed) else str(state)
            limit = "on request" if c.on_request else str(c.max_order) if _takes_matrices(c) else ""
            row: tuple[str, ...] = (
                name,
                said,
                _cones(c),
                _form(c),
                limit,
                f"{c.precision:.0e}",
                c.licence,
                solver.description,
            )
        except Exception as error:  # a third party's plug-in must not hide the others
            row = (name, f"broken: {type(error).__name__}: {error}", *[""] * 6)
        rows.append(row)
    header = ("backend", "state", "cones", "form", "order", "precision", "licence", "description")
    note = [
        "",
        "The first in this order that takes a model is used; `order` is the largest matrix inequality that it is",
        "chosen for by itself (-b takes it at any size), on request: only with -b. None is trusted: bounds are proved",
        "from what they return. `lipmodel backends NAME` shows the options of one.",
    ]
    return [*table(header, rows, width=screen_width()), *note]


_ORDER = ("psd-factored", "psd", "soc", "rsoc", "nonnegative", "zero", "free")
_SHORT = {"psd-factored": "psd (factors)", "nonnegative": "linear"}


def _cones(c: Capabilities) -> str:
    """The cones in few words: nonnegative, zero and free are what a solver of rows has."""
    known = sorted(c.cones - {"zero", "free"}, key=lambda cone: (_ORDER.index(cone) if cone in _ORDER else 99, cone))
    return ", ".join(_SHORT.get(cone, cone) for cone in known)


def _takes_matrices(c: Capabilities) -> bool:
    return c.structured or "psd" in c.cones


def _form(c: Capabilities) -> str:
    return "factors" if c.structured else c.form


def _described(solver: Backend) -> list[str]:
    from lipmodel.report.tables import facts, printable, table

    c = solver.capabilities
    form = {
        "factors": "reads the factors of a model; may refuse a model",
        "geometric": "geometric: the matrix inequalities themselves, one variable for each of the model's",
        "standard": "standard: the dual, matrix variables with one equality for each variable of the model",
    }[_form(c)]
    order = (
        "any, only on request (-b)" if c.on_request else f"{c.max_order}: the largest that it is chosen for by itself"
    )
    pairs = [
        ("state", str(solver.available())),
        ("cones", ", ".join(sorted(c.cones))),
        ("form", form),
        ("order", order),
        ("precision", f"{c.precision:.0e} relative"),
        ("progress", "reported" if c.progress else "none"),
        ("licence", c.licence),
    ]
    lines = [f"{solver.name}: {printable(solver.description)}", "", *facts(pairs)]
    if c.options:
        rows = [(o.name, str(o.default) or "(none)", o.help + _choices(o)) for o in c.options]
        lines += ["", "options (--backend-option NAME=VALUE):", "", *table(("name", "default", "help"), rows)]
    if c.passes_on:
        lines += ["", f"passed on: {c.passes_on}"]
    return lines


def _choices(option: BackendOption) -> str:
    return f" ({', '.join(option.choices)})" if option.choices else ""
