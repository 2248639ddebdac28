"""Why mutants of the kernel survive that do: by function, line, and changed line."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "Block.shape",
        "return (len(self.mantissa), len(self.mantissa[0]))",
        "return (len(self.mantissa), len(self.mantissa[-1]))",
    ): "all rows have one length, which is checked when a block is made",
    (
        "added",
        "a, b = (scaled(([1 << exponent - x.exponent] * x.shape[0], exponent - x.exponent), x) for x in (a, b))",
        "a, b = (scaled(([1 << exponent - x.exponent] * x.shape[0], exponent + x.exponent), x) for x in (a, b))",
    ): "only the integers of `scaled` are used; the exponent of the sum is written down anew",
    (
        "_product",
        "if fmpz_mat is not None:",
        "pass",
    ): "flint's product is left out, and the plain one gives the same integers",
    (
        "_product",
        "return [[int(v) for v in row] for row in (fmpz_mat(a) * fmpz_mat(b)).tolist()]",
        "pass",
    ): "flint's product is left out, and the plain one gives the same integers",
    (
        "fault",
        "return None",
        "pass",
    ): "a function that ends returns None",
    (
        "check_largest",
        "if not all((type(i) is int and 0 <= i < size for i in single)):",
        "if not all((type(i) is int for i in single)):",
    ): "a row or column that does not exist is refused below: not exactly the existing ones are covered",
    (
        "check_largest",
        "if not all((type(i) is int and 0 <= i < size for i in single)):",
        "if not all((type(i) is int and 0 <= i <= size for i in single)):",
    ): "a row or column that does not exist is refused below: not exactly the existing ones are covered",
    (
        "check_largest",
        "if not all((type(i) is int and 0 <= i < size for i in single)):",
        "if not all((type(i) is int and -1 <= i < size for i in single)):",
    ): "a row or column that does not exist is refused below: not exactly the existing ones are covered",
    (
        "spectral_norm_at_most",
        "if not (math.isfinite(t) and t >= 0.0):",
        "if not math.isfinite(t):",
    ): "a negative t puts negative entries on the diagonal, which `_scaling` refuses",
    (
        "spectral_norm_at_most",
        "if not (math.isfinite(t) and t >= 0.0):",
        "if not (math.isfinite(t) and t >= -1.0):",
    ): "a negative t puts negative entries on the diagonal, which `_scaling` refuses",
    (
        "decides_positive_semidefinite",
        "shift = 2.0 * (shift + [max(v, 0) / 2 ** GRID_BITS for v in lacking])",
        "shift = 2.0 * (shift + [max(v, 1) / 2 ** GRID_BITS for v in lacking])",
    ): "the next hint is shifted by one unit of 2^-112 more or less; a hint decides nothing",
    (
        "decides_positive_semidefinite",
        "shift = 2.0 * (shift + [max(v, 0) / 2 ** GRID_BITS for v in lacking])",
        "shift = 2.0 * (shift + [max(v, -1) / 2 ** GRID_BITS for v in lacking])",
    ): "the next hint is shifted by one unit of 2^-112 more or less; a hint decides nothing",
    (
        "_on_grid",
        "if not 0 <= j <= i < len(sizes) or block.shape != (sizes[i], sizes[j]):",
        "if not 0 <= j <= i < len(sizes):",
    ): "a block of another shape raises the same error where its rows meet the powers of two",
    (
        "_scaling",
        "if full < 0 or (full == 0 and _is_used(matrix, i, a)):",
        "if full == 0 and _is_used(matrix, i, a):",
    ): "a negative entry of the diagonal has no hint (its square root is none), and is refused there",
    (
        "_scaling",
        "if full < 0 or (full == 0 and _is_used(matrix, i, a)):",
        "if full < -1 or (full == 0 and _is_used(matrix, i, a)):",
    ): "a negative entry of the diagonal has no hint (its square root is none), and is refused there",
    (
        "_scaling",
        "e = -((full.bit_length() - common) // 2) if full else 0",
        "e = -((full.bit_length() - common) // 2) if full else 1",
    ): "what stands in a row of zeros: it is decoupled, and any positive diagonal entry does",
    (
        "_scaling",
        "e = -((full.bit_length() - common) // 2) if full else 0",
        "e = -((full.bit_length() - common) // 2) if full else -1",
    ): "what stands in a row of zeros: it is decoupled, and any positive diagonal entry does",
    (
        "_scaling",
        "result.append((e, _shifted(v, 2 * e + GRID_BITS - exponent) if full else 1 << GRID_BITS))",
        "result.append((e, _shifted(v, 2 * e + GRID_BITS - exponent) if full else 2 << GRID_BITS))",
    ): "what stands in a row of zeros: it is decoupled, and any positive diagonal entry does",
    (
        "_factor",
        "if a >= b > j:",
        "if a >= b >= j:",
    ): "entries of a finished column are never read again; a hint decides nothing",
    (
        "_factor",
        "remaining[a, b] = (np.diag(old) if a == b and old.ndim == 1 else old) - column[a] @ column[b].T",
        "remaining[a, b] = (np.diag(old) if old.ndim == 1 else old) - column[a] @ column[b].T",
    ): "an absent block stands as one zero, and its diagonal matrix is one zero",
    (
        "_to_grid",
        "if not np.all(np.abs(values) <= 4.0):",
        "if not np.all(np.abs(values) < 4.0):",
    ): "how large an entry of a hint may be; with a diagonal below 2 they stay below 1.5",
    (
        "_to_grid",
        "if not np.all(np.abs(values) <= 4.0):",
        "if not np.all(np.abs(values) <= 5.0):",
    ): "how large an entry of a hint may be; with a diagonal below 2 they stay below 1.5",
    (
        "_to_grid",
        "if not np.all(np.abs(values) <= 4.0):",
        "if not np.all(np.abs(values) <= 3.0):",
    ): "how large an entry of a hint may be; with a diagonal below 2 they stay below 1.5",
    (
        "_minus",
        "if not isinstance(a[0], list) and (not isinstance(b[0], list)):",
        "if not isinstance(a[-1], list) and (not isinstance(b[0], list)):",
    ): "a tile is a list of lists, or a list of numbers, throughout",
    (
        "_minus",
        "if not isinstance(a[0], list) and (not isinstance(b[0], list)):",
        "if not isinstance(a[0], list) and (not isinstance(b[-1], list)):",
    ): "a tile is a list of lists, or a list of numbers, throughout",
    (
        "_dense",
        "return tile if isinstance(tile[0], list) else "
        "[[v if a == b else 0 for b in size] for a, v in enumerate(tile)]",
        "return tile if isinstance(tile[-1], list) else "
        "[[v if a == b else 0 for b in size] for a, v in enumerate(tile)]",
    ): "a tile is a list of lists, or a list of numbers, throughout",
    (
        "_shifted",
        "return value << places if places >= 0 else value >> -places",
        "return value << places if places > 0 else value >> -places",
    ): "a shift by 0 places is the same in both directions",
    (
        "_shifted",
        "return value << places if places >= 0 else value >> -places",
        "return value << places if places >= 1 else value >> -places",
    ): "a shift by 0 places is the same in both directions",
}
