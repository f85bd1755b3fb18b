"""The three searches behind GGML's quantized blocks, over many blocks at once, bit for bit as llama.cpp fits them.

Arrays are float32 and element-major: (n, B), element i of all B blocks lies in row i. That makes every sum run over
rows in order, as the reference does, and every other step one pass over contiguous memory. Facts: `docs/formats.md`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
TINY = np.float32(1e-15)
"""Blocks whose largest magnitude lies below are all zeros."""
NO_STEP = np.float32(1e-36)
"""Steps and spans below have reciprocals, times the number of levels, that overflow: taken as 0."""


def ordered_sum(values_nB: Floats) -> Floats:
    """Sum over rows, first to last, in float32. Returns (B,)."""
    if values_nB.shape[1] == 1:  # numpy would sum a lone column in pairs
        return np.asarray(np.add.accumulate(values_nB, axis=0)[-1], dtype=np.float32)
    return np.asarray(np.add.reduce(values_nB, axis=0), dtype=np.float32)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; 0 where the denominator is 0."""
    quotient: Floats = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
    return quotient


def inverse_step(step: Floats) -> Floats:
    """Return 1 / step, or 0 where that would be infinite."""
    alive = np.abs(step) >= NO_STEP
    inverse: Floats = np.where(alive, np.float32(1) / np.where(alive, step, np.float32(1)), np.float32(0))
    return inverse


def signed_extreme(x_nB: Floats) -> Floats:
    """Return the first element of largest magnitude of every block, with its sign; +0 where all are zeros: (B,)."""
    at = np.abs(x_nB).argmax(axis=0)
    extremes: Floats = np.take_along_axis(x_nB, at[None], axis=0)[0]
    return np.where(extremes != 0, extremes, np.float32(0))


def smallest(x_nB: Floats) -> Floats:
    """Return the first of the smallest elements of every block, which tells +0 from -0: (B,)."""
    return _first(x_nB, np.less)


def largest(x_nB: Floats) -> Floats:
    """Return the first of the largest elements of every block: (B,)."""
    return _first(x_nB, np.greater)


def _first(x_nB: Floats, before: np.ufunc) -> Floats:
    found: Floats = x_nB[0].copy()
    for row in x_nB[1:]:
        np.copyto(found, row, where=before(row, found))
    return found


def symmetric_search(x_nB: Floats, weight_nB: Floats, nmax: int) -> tuple[Floats, Floats]:
    """Fit x ≈ scale q with q in -nmax..nmax-1, by 19 candidates around extreme / -nmax.

    Returns the scale (B,) and q (n, B); the first candidate is the plain one, others must be strictly better.
    """
    extreme = signed_extreme(x_nB)
    alive = np.abs(extreme) >= TINY
    safe = np.where(alive, extreme, np.float32(1))
    weighted = weight_nB * x_nB
    codes = np.zeros_like(x_nB)
    scale = best = np.zeros_like(extreme)
    for index, step in enumerate([0, *range(-9, 0), *range(1, 10)]):
        inverse = np.float32(-1) * (np.float32(nmax) + np.float32(0.1) * np.float32(step)) / safe
        q = np.clip(np.rint(inverse * x_nB), -nmax, nmax - 1)
        xq, qq = ordered_sum(weighted * q), ordered_sum(weight_nB * q * q)
        if index == 0:
            codes, scale = q, divide(xq, qq)
            best = scale * xq
            continue
        better = (qq > 0) & (xq * xq > best * qq)
        np.copyto(codes, q, where=better)
        scale = np.where(better, divide(xq, qq), scale)
        best = np.where(better, scale * xq, best)
    return np.where(alive, scale, np.float32(0)), np.where(alive, codes, np.float32(-nmax))


def minmax_search(
    x_nB: Floats, weight_nB: Floats, nmax: int, start: float, step: float, count: int
) -> tuple[Floats, Floats, Floats]:
    """Fit x ≈ scale q - minimum with q in 0..nmax and minimum >= 0, by least squares from count + 1 grids.

    Returns scale (B,), minimum (B,) and q (n, B). After a better candidate the next ones start from its minimum.
    """
    high, low = largest(x_nB), smallest(x_nB)
    low = np.where(low > 0, np.float32(0), low)
    alive = high - low >= NO_STEP
    sum_w, sum_x = ordered_sum(weight_nB), ordered_sum(weight_nB * x_nB)
    span = np.where(alive, high - low, np.float32(1))
    codes = np.clip(np.rint((np.float32(nmax) / span) * (x_nB - low)), 0, nmax)
    scale = _reciprocal(np.float32(nmax) / span)
    best = _weighted_error(x_nB, weight_nB, codes, scale, low)
    for index in range(count + 1):
        grid = np.float32(start) + np.float32(step) * np.float32(index) + np.float32(nmax)
        span = np.where(alive, high - low, np.float32(1))
        q = np.clip(np.rint((grid / span) * (x_nB - low)), 0, nmax)
        weighted = weight_nB * q
        sum_q, sum_qq, sum_xq = ordered_sum(weighted), ordered_sum(weighted * q), ordered_sum(weighted * x_nB)
        determinant = sum_w * sum_qq - sum_q * sum_q
        new_scale = divide(sum_w * sum_xq - sum_x * sum_q, determinant)
        new_low = divide(sum_qq * sum_x - sum_q * sum_xq, determinant)
        above = new_low > 0
        new_scale = np.where(above, divide(sum_xq, sum_qq), new_scale)
        new_low = np.where(above, np.float32(0), new_low)
        error = _weighted_error(x_nB, weight_nB, q, new_scale, new_low)
        better = (determinant > 0) & (error < best) & alive
        np.copyto(codes, q, where=better)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
        best = np.where(better, error, best)
    codes *= alive
    return np.where(alive, scale, np.float32(0)), -low, codes


def positive_search(x_nB: Floats, weight_nB: Floats, nmax: int) -> tuple[Floats, Floats]:
    """Fit non-negative x ≈ scale q with q in 0..nmax: nine grids, then five rounds of moving single codes.

    Returns scale (B,) and q (n, B).
    """
    most = x_nB.max(axis=0)
    alive = most >= TINY
    safe = np.where(alive, most, np.float32(1))
    inverse = np.float32(nmax) / safe
    best = _weighted_error(x_nB, weight_nB, _within(inverse * x_nB, nmax), _reciprocal(inverse), None)
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        candidate = (np.float32(0.1) * np.float32(step) + np.float32(nmax)) / safe
        q = _within(candidate * x_nB, nmax)
        error = _weighted_error(x_nB, weight_nB, q, _reciprocal(candidate), None)
        better = error < best
        inverse, best = np.where(better, candidate, inverse), np.where(better, error, best)
    codes = _within(inverse * x_nB, nmax)
    scale = _descend(x_nB, weight_nB, codes, nmax)
    codes *= alive
    return np.where(alive, scale, np.float32(0)), codes


def _descend(x_nB: Floats, weight_nB: Floats, codes_nB: Floats, nmax: int) -> Floats:
    """Move one code at a time to its best value while that helps; changes `codes_nB`, returns the scale (B,)."""
    weighted = weight_nB * x_nB
    xq, qq = ordered_sum(weighted * codes_nB), ordered_sum(weight_nB * codes_nB * codes_nB)
    for _ in range(5):
        changed = False
        for x, w, q in zip(x_nB, weight_nB, codes_nB, strict=True):
            rest_xq, rest_qq = xq - w * x * q, qq - w * q * q
            movable = (rest_xq > 0) & (rest_qq > 0)
            new = _within(x * rest_qq / np.where(movable, rest_xq, np.float32(1)), nmax)
            new_xq, new_qq = rest_xq + w * x * new, rest_qq + w * new * new
            better = movable & (new != q) & (new_xq * new_xq * qq > xq * xq * new_qq)
            np.copyto(q, new, where=better)
            xq, qq = np.where(better, new_xq, xq), np.where(better, new_qq, qq)
            changed |= bool(better.any())
        if not changed:
            break
    return np.where(qq > 0, divide(xq, qq), np.float32(0))


def _within(values: npt.NDArray[np.floating], nmax: int) -> Floats:
    """Return the nearest codes in 0..nmax."""
    codes: Floats = np.clip(np.rint(values), 0, nmax)
    return codes


def _reciprocal(values: npt.NDArray[np.floating]) -> Floats:
    result: Floats = np.divide(np.float32(1), values, dtype=np.float32)
    return result


def _weighted_error(x_nB: Floats, weight_nB: Floats, q_nB: Floats, scale_B: Floats, low_B: Floats | None) -> Floats:
    # The reference subtracts x from the fit with a minimum, and the fit from x without; the square is the same.
    difference = scale_B * q_nB
    if low_B is not None:
        difference += low_B
    difference -= x_nB
    difference *= difference
    difference *= weight_nB
    return ordered_sum(difference)
