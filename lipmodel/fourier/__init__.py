"""Convolutional networks on a torus: translation-invariant multipliers, block-diagonal over frequencies."""
