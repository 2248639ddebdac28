"""What a formulation states: signals, variables, quadratic forms, constraints and an objective."""
