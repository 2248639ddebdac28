"""Is the kernel's test suite worth its name? Every small change of kernel.py must be noticed by the probes.

    python -m benchmarks.mutants [--sample N] [--seed 0] [--module NAME]

With --module, the same for another checker (benchmarks/rule_probes.py), into results/mutants_NAME.md. Each mutant is
the module with one comparison, operator, constant, condition, call or statement changed. It is caught if
a probe (benchmarks/probes.py) gets another answer, or none within the time limit. Writes results/kernel_mutants.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rule_probes
from benchmarks.equivalent import EQUIVALENT
from benchmarks.probes import probes
from benchmarks.questions import Probe

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "lipmodel" / "certify" / "kernel.py"
RESULT = ROOT / "benchmarks" / "results" / "kernel_mutants.md"
SECONDS = 20
"""Time for all probes against one mutant; the kernel itself takes about 0.1 s."""
MEMORY = 3 << 30

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.MatMult: ast.Add,
}
_CALLS = {"max": "min", "min": "max", "any": "all", "all": "any", "abs": "int"}


@dataclass(frozen=True, slots=True, eq=False)
class Mutant:
    """One change of a module: where, what the line says before and after, and the node that is put at the path."""

    function: str
    line: int
    before: str
    after: str
    module: str
    path: tuple[Any, ...]
    node: ast.AST

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the change when lines move."""
        return self.function, self.before, self.after

    def code(self) -> Any:
        """The changed module, compiled."""
        tree = ast.parse(self.module)
        _replace(tree, self.path, self.node)
        return compile(ast.fix_missing_locations(tree), "mutant", "exec")


def mutants(source: str) -> list[Mutant]:
    """All changes of a module, in the order of its lines."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    for function, path in _places(tree):
        node, statement = _at(tree, path), _at(tree, path[:1])
        original = ast.unparse(statement).splitlines()
        for changed in _changes(node):
            _replace(tree, path, changed)
            before, after = _difference(original, ast.unparse(statement).splitlines())
            _replace(tree, path, node)
            found.append(Mutant(function, getattr(node, "lineno", 0), before, after, source, path, changed))
    return found


def _places(tree: ast.Module) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Paths to every node that is executed for its value: no docstrings, annotations or decorators."""

    def walk(node: ast.AST, path: tuple[Any, ...], function: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        if path:
            yield function, path
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}" if function else node.name
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment", "bases", "keywords"):
                continue
            items = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, item in items:
                if not isinstance(item, ast.AST) or _is_documentation(item) or isinstance(item, ast.JoinedStr):
                    continue
                yield from walk(item, (*path, (name, index)), function)

    for index, node in enumerate(tree.body):
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.BinOp)
        if constant or isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from walk(node, (("body", index),), "")


def _is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _at(tree: ast.AST, path: tuple[Any, ...]) -> Any:
    node: Any = tree
    for name, index in path:
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    return node


def _replace(tree: ast.AST, path: tuple[Any, ...], new: ast.AST) -> None:
    parent = _at(tree, path[:-1])
    name, index = path[-1]
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new


def _changes(node: Any) -> Iterator[Any]:
    """What a node is changed into."""
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in _COMPARISONS.get(type(op), ()):
                changed = copy.deepcopy(node)
                changed.ops[place] = other()
                yield changed
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATORS:
        changed = copy.deepcopy(node)
        changed.op = _OPERATORS[type(node.op)]()
        yield changed
    elif isinstance(node, ast.UnaryOp):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
        for place in range(len(node.values)):
            rest = copy.deepcopy(node.values[:place] + node.values[place + 1 :])
            yield rest[0] if len(rest) == 1 else ast.BoolOp(op=copy.deepcopy(node.op), values=rest)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        changed = copy.deepcopy(node)
        changed.func.id = _CALLS[node.func.id]
        yield changed
    elif isinstance(node, ast.IfExp):
        changed = copy.deepcopy(node)
        changed.body, changed.orelse = changed.orelse, changed.body
        yield changed
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(op=ast.Not(), operand=changed.test)
        yield changed
    if isinstance(node, ast.comprehension) and node.ifs:
        changed = copy.deepcopy(node)
        changed.ifs = []
        yield changed
    if isinstance(node, ast.Expr | ast.AugAssign | ast.If | ast.Raise | ast.Continue | ast.Return | ast.For):
        yield ast.Pass()


def _difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """The first lines that differ."""
    for a, b in zip(before, after, strict=False):
        if a != b:
            return a.strip(), b.strip()
    return "", ""


def caught_by(mutant: Mutant, questions: Sequence[Probe] | None = None) -> str:
    """The first probe that a mutant fails, "" if none; run in a process of its own. By default, the kernel's probes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "stopped"
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(SECONDS)
            answer = _verdict(mutant.code(), questions)
        finally:
            os.write(writer, answer.encode()[:200])
            os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        said = stream.read()
    return said if status == 0 else "time or memory"


def _verdict(code: Any, questions: Sequence[Probe] | None = None) -> str:
    """The first probe that a compiled module fails, "" if none."""
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module
    try:
        exec(code, module.__dict__)
    except Exception as error:
        return f"import: {type(error).__name__}"
    return next((p.name for p in questions or probes() if not p.passes(module)), "")


def run(found: list[Mutant], questions: Sequence[Probe] | None = None) -> list[tuple[Mutant, str]]:
    """Every mutant with the probe that catches it."""
    questions = questions or probes()  # made once, here, and not in every child
    return [(mutant, caught_by(mutant, questions)) for mutant in found]


def report(results: list[tuple[Mutant, str]], seconds: float, module: str | None = None) -> str:
    """The Markdown page."""
    if module is None:
        title, asked, option = "the exact kernel", f"{len(probes())} probes of `benchmarks/probes.py`", ""
        answers = "whose answers come from rational arithmetic"
    else:
        title, option = f"the checker `{module}`", f" --module {module}"
        asked = f"{len(rule_probes.probes(module))} probes of `benchmarks/rule_probes.py`"
        answers = "whose answers are those of the checker itself"
    survivors = [m for m, probe in results if not probe]
    explained = [m for m in survivors if m.key in EQUIVALENT]
    caught = len(results) - len(survivors)
    lines = [
        f"# Mutants of {title}",
        "",
        f"`python -m benchmarks.mutants{option}` changes `{module or 'kernel'}.py` in one place at a time",
        f"and asks the {asked}, {answers}.",
        "",
        f"**{caught} of {len(results)} mutants are caught: {100 * caught / len(results):.1f} %** "
        f"({seconds / 60:.1f} minutes). {len(survivors)} survive, of which {len(explained)} are explained below.",
        "",
        "| function | line | before | after | why it survives |",
        "|---|---|---|---|---|",
    ]
    for m in survivors:
        why = EQUIVALENT.get(m.key, "")
        cells = [f"`{c.replace('|', chr(92) + '|')}`" for c in (m.before[:110], m.after[:110])]
        lines.append(f"| {m.function} | {m.line} | {cells[0]} | {cells[1]} | {why} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run and write the page."""
    parser = argparse.ArgumentParser(description="mutation test of the exact kernel")
    parser.add_argument("--sample", type=int, help="only so many mutants, drawn at random; writes nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", choices=sorted(rule_probes.MODULES), help="another checker than the kernel")
    args = parser.parse_args()
    source = (KERNEL if args.module is None else KERNEL.with_name(f"{args.module}.py")).read_text()
    questions = probes() if args.module is None else rule_probes.probes(args.module)
    failed = _verdict(compile(source, "original", "exec"), questions)
    if failed:
        print(f"the checker itself fails the probe {failed!r}")
        return 1
    found = mutants(source)
    if args.sample is not None:
        found = random.Random(args.seed).sample(found, min(args.sample, len(found)))
    start = time.monotonic()
    results = run(found, questions)
    page = report(results, time.monotonic() - start, args.module)
    print(page)
    if args.sample is None:
        (RESULT if args.module is None else RESULT.with_name(f"mutants_{args.module}.md")).write_text(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
