"""The dual of a conic program, in standard form: matrix and vector variables, one equality per geometric variable.

minimise  sum_k <C_k, X_k> + h'u + f'v + sum b_k'w_k
subject to  sum_k <A_kj, X_k> + (G'u + E'v + sum A_k'w_k)_j = c_j  for every j,
            X_k positive semidefinite,  u >= 0,  v free,  w_k in (rotated) second-order cones, their own duals

These are the numbers of the geometric program, read by columns. Its optimum is minus that of the geometric program,
whose y_j is minus the multiplier of equality j.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from lipmodel.bridges.program import ConeProgram, PsdBlock

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class StandardProgram:
    """geometric: the program that this is the dual of, with n variables, one for each equality here."""

    geometric: ConeProgram

    @property
    def rhs(self) -> Array:
        """c, shape (n,)."""
        return self.geometric.cost

    @property
    def psd(self) -> tuple[PsdBlock, ...]:
        """One matrix variable each; entry `var` j >= 0 is one of A_j in equality j, `var` -1 one of the cost C."""
        return self.geometric.psd

    @property
    def cones(self) -> list[tuple[str, int]]:
        """The parts of the vector variable in order: ("nonnegative" | "free" | "soc" | "rsoc", size)."""
        p = self.geometric
        linear = [("nonnegative", p.ineq.shape[0]), ("free", p.eq.shape[0])]
        second = [("rsoc" if s.rotated else "soc", s.matrix.shape[0]) for s in p.soc]
        return [part for part in (*linear, *second) if part[1]]

    @cached_property
    def columns(self) -> Any:
        """The coefficients of the vector variable in the equalities: CSC, (n, its size)."""
        p = self.geometric
        return sp.csc_array(sp.vstack([p.ineq, p.eq, *(s.matrix for s in p.soc)]).T)

    @cached_property
    def cost(self) -> Array:
        """The cost of the vector variable."""
        p = self.geometric
        return np.concatenate([p.ineq_rhs, p.eq_rhs, *(s.rhs for s in p.soc)])
