"""Fit the table of csrc/cpu/tanh_table.inl: tanh on 32 intervals, a polynomial for each.

    pip install mpmath && python scripts/fit_tanh.py > csrc/cpu/tanh_table.inl

Interval i holds the |x| whose float bits, less those of 2⁻⁴ and shifted right by 21, are i: four
intervals for each power of two from 2⁻⁴ to 2⁴; the first one reaches down to 0. On each, tanh(x) is
a polynomial of degree 5 in t = x − centre. In the table an interval stands where the lowest 5 of
its shifted bits say, so that a lookup needs no subtraction.
"""

from __future__ import annotations

import re

import mpmath as mp
import numpy as np

INTERVALS, DEGREE, NODES = 32, 5, 40
FIRST = (0x3D800000 >> 21) % INTERVALS  # place of interval 0, from the bits of 2⁻⁴


def interval(i: int) -> tuple[float, float]:
    """Ends of interval i."""
    exponent, quarter = divmod(i, 4)
    start = 2.0 ** (exponent - 4)
    return start * (1 + quarter / 4) if i else 0.0, start * (1 + (quarter + 1) / 4)


def rounding(c: np.float32) -> float:
    """Distance of tanh(c) from its float, in units of the last place."""
    exact = mp.tanh(mp.mpf(float(c)))
    nearest = np.float32(float(exact))
    return abs(float((mp.mpf(float(nearest)) - exact) / mp.mpf(float(np.spacing(nearest)))))


def centre(low: float, high: float) -> np.float32:
    """Float near the middle whose tanh is nearly a float, so that the constant term is exact."""
    middle = np.float32((low + high) / 2)
    near = [np.float32(middle + k * np.spacing(middle)) for k in range(-400, 401)]
    return min(near, key=rounding)


def chebyshev(low: float, high: float) -> list[mp.mpf]:
    """Nodes of an interval."""
    angles = (2 * np.arange(NODES) + 1) * np.pi / (2 * NODES)
    return [mp.mpf(float(x)) for x in (low + high) / 2 + (high - low) / 2 * np.cos(angles)]


def fitted(t: np.ndarray, values: np.ndarray, powers: list[int]) -> dict[int, float]:
    """Least-squares coefficients; each is rounded to a float before the higher ones are fitted."""
    found, rest = {}, values
    for i, power in enumerate(powers):
        columns = np.stack([t**p for p in powers[i:]], 1)
        scale = np.abs(columns).max(0)
        solution = np.linalg.lstsq(columns / scale, rest, rcond=None)[0] / scale
        found[power] = float(np.float32(solution[0]))
        rest = rest - columns[:, 0] * found[power]
    return found


def row(i: int) -> list[float]:
    """Centre and coefficients of interval i, the constant first."""
    low, high = interval(i)
    coefficients = dict.fromkeys(range(DEGREE + 1), 0.0)
    if low >= 10:  # tanh rounds to 1
        return [low, *(coefficients | {0: 1.0}).values()]
    nodes = chebyshev(low, high)
    if i == 0:  # odd, and x itself to first order: small arguments keep their relative precision
        t = np.array([float(x) for x in nodes])
        values = np.array([float(mp.tanh(x) - x) for x in nodes])
        return [0.0, *(coefficients | {1: 1.0} | fitted(t, values, [3, 5])).values()]
    c = mp.mpf(float(centre(low, high)))
    constant = float(np.float32(float(mp.tanh(c))))
    t = np.array([float(x - c) for x in nodes])
    values = np.array([float(mp.tanh(x) - mp.mpf(constant)) for x in nodes])
    powers = list(range(1, DEGREE + 1))
    return [float(c), *(coefficients | {0: constant} | fitted(t, values, powers)).values()]


def main() -> None:
    """Print the table as C++."""
    mp.mp.dps = 40
    rows = [row((place - FIRST) % INTERVALS) for place in range(INTERVALS)]
    print("// Written by scripts/fit_tanh.py: 32 intervals a column.")
    for name, column in zip(["centre", *range(DEGREE + 1)], zip(*rows, strict=True), strict=True):
        label = "kCentre" if name == "centre" else f"kCoefficient{name}"
        values = [re.sub(r"\.?0*p", "p", float(v).hex()) + "f" for v in column]
        print(f"alignas(64) constexpr float {label}[32] = {{")
        for i in range(0, INTERVALS, 8):
            print("    " + ", ".join(values[i : i + 8]) + ",")
        print("};")


if __name__ == "__main__":
    main()
