"""Lower bounds: witness pairs and the search for them."""

from __future__ import annotations

from lipmodel.lower.linearise import jacobian_vector_product, vector_jacobian_product
from lipmodel.lower.search import search
from lipmodel.lower.witness import Witness, evaluate_pair, witness_ratio

__all__ = ["Witness", "evaluate_pair", "jacobian_vector_product", "search", "vector_jacobian_product", "witness_ratio"]
