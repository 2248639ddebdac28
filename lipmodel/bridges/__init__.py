"""From what was stated to what a solver receives: exact reductions, scaling and the conic program."""
