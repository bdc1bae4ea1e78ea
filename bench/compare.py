"""Compare two results of one benchmark, row by row.

    python -m bench compare OLD NEW

A row's time in OLD over that in NEW: 2.00× is twice as fast. "≈" marks what lies within the two
rows' spreads, "?" rows without one. Rows that only one of them has, and rows whose results are further off,
are named.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

NAMES = ("section", "net", "shape", "batch", "windows", "patch", "stride", "grad", "dtype", "layout", "name")
"""What a row is of, as far as it has it."""
TIMES = ("ms", "seconds", "us")
WORSE = 10.0  # times as far off as before

Key = tuple[tuple[str, str], ...]


def read(path: Path) -> dict[str, Any]:
    """One result."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["rows"], list) or not isinstance(found["benchmark"], str):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: expected a result of a benchmark; {str(error) or 'it has no rows'}") from error
    return found


def key_of(row: dict[str, Any]) -> Key:
    """What a row is of."""
    return tuple((name, _text(row[name])) for name in NAMES if row.get(name) is not None)


def _text(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list) else str(value)


def time_of(row: dict[str, Any]) -> float | None:
    """Its time, in whatever unit."""
    return next((float(row[name]) for name in TIMES if row.get(name) is not None), None)


def by_key(found: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """Rows that have a time."""
    return {key_of(row): row for row in found["rows"] if time_of(row) is not None}


def lines_of(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The comparison as text.

    Raises
    ------
    SystemExit
        If the two are of different benchmarks.
    """
    if old["benchmark"] != new["benchmark"]:
        raise SystemExit(f"expected one benchmark, found {old['benchmark']} and {new['benchmark']}")
    before, after = by_key(old), by_key(new)
    lines = [f"{name:>4}: {_machine(found)}" for name, found in (("old", old), ("new", new))]
    ratios = []
    for key in (key for key in before if key in after):
        ratio, noise = _ratio(before[key], after[key])
        ratios.append(ratio)
        sign = "?" if not noise else "≈" if abs(math.log(ratio)) <= noise else " "
        lines.append(f"{ratio:6.2f}× {sign} {_label(key)}{_further_off(before[key], after[key])}")
    for name, rows, others in (("old", before, after), ("new", after, before)):
        lines += [f"only {name}:  {_label(key)}" for key in rows if key not in others]
    if not ratios:
        lines.append("no rows with times in common")
    else:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"{len(ratios)} rows; {mean:.2f}× in the geometric mean, {min(ratios):.2f}× to {max(ratios):.2f}×")
    return lines


def _machine(found: dict[str, Any]) -> str:
    about = found.get("machine", {})
    known = [str(about[k]) for k in ("cpu", "gpu", "isa", "threads", "torch", "sdsgsm-fast") if k in about]
    return ", ".join([*known, "quick"] if found.get("quick") else known)


def _ratio(old: dict[str, Any], new: dict[str, Any]) -> tuple[float, float]:
    """How many times as fast, and the logarithm of the ratio that the spreads alone may give."""
    before, after = time_of(old), time_of(new)
    assert before is not None
    assert after is not None
    return before / after, math.log1p((old.get("spread") or 0.0) + (new.get("spread") or 0.0))


def _label(key: Key) -> str:
    return " ".join(value for _, value in key)


def _further_off(old: dict[str, Any], new: dict[str, Any]) -> str:
    before, after = old.get("deviation"), new.get("deviation")
    if before is None or after is None or after <= WORSE * max(before, 1e-12):
        return ""
    return f"  OFF BY {after:.0e}, was {before:.0e}"


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    print("\n".join(lines_of(read(args.old), read(args.new))))


if __name__ == "__main__":
    main()
