"""Scalar activations: names, values, and proved slope intervals, global and on an interval."""

from __future__ import annotations

from lipmodel.activations.library import activation, register
from lipmodel.activations.spec import Activation

__all__ = ["Activation", "activation", "register"]
