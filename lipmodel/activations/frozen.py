"""Global slope intervals of the standard activations with their default parameters, as hexadecimal doubles."""

from __future__ import annotations

GLOBAL_SLOPES: dict[str, tuple[str, str]] = {}
