"""From a network to a solver file: the arrows of `pipeline`, ending before a backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lipmodel.certify.certificate import network_named
from lipmodel.errors import UsageError
from lipmodel.families import chosen_outputs, measured, member_spec, members, restricted
from lipmodel.member import build, free_multipliers
from lipmodel.model.model import Model
from lipmodel.network.graph import Network
from lipmodel.pipeline import loaded
from lipmodel.question import asked, make_request, systems
from lipmodel.result import describe, plain


def export(
    net: Network | str | os.PathLike[str],
    formulation: Any,
    path: str | os.PathLike[str],
    *,
    norm: Any = None,
    outputs: Any = "all",
    domain: Any = "global",
    options: Mapping[str, Any] | None = None,
    graph_input: Any = None,
    graph_output: Any = None,
    form: str | None = None,
) -> tuple[str, str]:
    """Write the (scaled) problem to a solver file and its map beside it; returns the two paths.

    path: its suffix names the format (`lipmodel.io.known_formats()`); form: "geometric" or "standard" where the format
    has both. The other arguments are those of `solve`. Raises UsageError, LipmodelError for a model too large.
    """
    from lipmodel.io import write_problem

    network = loaded(net, graph_input, graph_output)
    norms, region = asked(network, formulation, norm, domain, options)
    whole = systems(network, region, norms[0]).system
    request = make_request(whole, formulation, norm=norms, outputs=outputs, domain=region, options=options)
    spec = measured(request.spec)
    system = chosen_outputs(whole, spec.outputs)
    family = members(system, spec, request.formulation.norms, request.formulation.name)
    if len(family) != 1:
        raise UsageError(
            f"--norm {':'.join(request.spec.norms)} is a family of {len(family)} programs, and a file holds one: "
            "choose an output with --outputs I (and for an input norm 1, another input norm)"
        )
    member = family[0]
    own = restricted(system, member)
    built = build(own, request.formulation, member_spec(spec, member))
    if not isinstance(built, Model):
        raise UsageError(f"the formulation {request.formulation.name!r} needs no solver: there is no problem to export")
    if built.refine is not None:
        raise UsageError(
            f"{request.formulation.name!r} is solved in rounds here, with a model for each: choose options for one "
            f"model (`lipmodel formulations {request.formulation.name}`)"
        )
    if own.complete is not None and not free_multipliers(built):  # as `solve_member` does
        complete = build(own.complete, request.formulation, member_spec(spec, member))
        built = complete if isinstance(complete, Model) else built
    header = {
        "network": {**describe(network), **network_named(network)},
        "spec": request.spec.to_json(),
        "formulation": {"name": request.formulation.name, "options": plain(request.formulation.options())},
        "member": {"row": member.row, "column": member.column, "norms": list(member.norms)},
    }
    return write_problem(built, path, header, form=form)
