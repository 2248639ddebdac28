"""A network as a Graphviz graph, for `dot -Tsvg`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipmodel.network.ops import Add, Concat, Constant, Elementwise, Input, Linear
from lipmodel.report.tables import printable

if TYPE_CHECKING:
    from lipmodel.network.graph import Network

_STYLES: dict[type, str] = {
    Input: 'shape=ellipse, fillcolor="#e8e8e8"',
    Constant: 'shape=ellipse, fillcolor="#e8e8e8", style="filled,dashed"',
    Linear: 'fillcolor="#dbe9f6"',
    Elementwise: 'fillcolor="#fde3c8"',
    Add: 'shape=circle, fillcolor="#ffffff", width=0.3, fixedsize=true',
    Concat: 'fillcolor="#ffffff"',
}
_WIDTH = 36
"""Characters of one line of a label."""


def network_dot(network: Network) -> str:
    """The text of the graph: affine maps blue, nonlinearities orange, edges with the shape of what they carry."""
    from lipmodel.cli.summary import detail

    lines = [
        "digraph network {",
        "  rankdir=TB; nodesep=0.3; ranksep=0.35;",
        '  node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="Helvetica", fontsize=10];',
        '  edge [fontname="Helvetica", fontsize=9, color="#555555", arrowsize=0.7];',
    ]
    names = {node: f"n{k}" for k, node in enumerate(network.order())}
    for node, name in names.items():
        op = network.op(node)
        style = _STYLES.get(type(op), 'fillcolor="#fde3c8"')
        label = "+" if isinstance(op, Add) else "\\n".join(map(_quoted, [_short(node), *_wrapped(detail(op))]))
        lines.append(f'  {name} [label="{label}", tooltip="{_quoted(printable(node))}", {style}];')
    for node, name in names.items():
        for argument in network.arguments(node):
            shape = "×".join(map(str, network.shape(argument))) or "1"
            lines.append(f'  {names[argument]} -> {name} [label=" {shape}"];')
    shape = "×".join(map(str, network.output_shape)) or "1"
    lines += [
        f'  output [label="output\\n{shape}", shape=ellipse, fillcolor="#e8e8e8"];',
        f"  {names[network.output]} -> output;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _WIDTH else f"…{text[1 - _WIDTH :]}"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(printable(text), _WIDTH)[:4]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
