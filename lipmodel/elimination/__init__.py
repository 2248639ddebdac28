"""Block elimination of an increment system: the recursion behind closed forms, descent, starting points and the repair.

All of this is floating point and untrusted: it finds good multipliers, and `certify` proves what they give. Slopes are
arbitrary, the graph is any DAG. For formulations: `Recursion` (a rule for S gives the multipliers of a closed form),
`choose_s` (published rules), `best_s` (the best S for what a layer feeds) and `descent` (S by gradient, ever better).
"""

from __future__ import annotations

from lipmodel.elimination.blocks import Blocks, scaled_blocks, spectral_estimate, tied, top_eigenvalue
from lipmodel.elimination.forward import (
    Layer,
    Recursion,
    closed_form_bound,
    closed_forms,
    forward_multipliers,
    forward_recursion,
    path_weights,
)
from lipmodel.elimination.gradient import best_s, descent
from lipmodel.elimination.rules import RULES, choose_s
from lipmodel.elimination.sweep import Reduced, backward_sweep

__all__ = [
    "Blocks",
    "Layer",
    "RULES",
    "Recursion",
    "Reduced",
    "backward_sweep",
    "best_s",
    "choose_s",
    "closed_form_bound",
    "closed_forms",
    "descent",
    "forward_multipliers",
    "forward_recursion",
    "path_weights",
    "scaled_blocks",
    "spectral_estimate",
    "tied",
    "top_eigenvalue",
]
