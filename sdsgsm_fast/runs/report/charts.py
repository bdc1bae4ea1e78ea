"""Figures of a page as SVG and tables, in its own colours."""

from __future__ import annotations

import math
from collections import Counter
from html import escape

import torch
from torch import Tensor

BINS = 32
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 170, 6, 24  # of a histogram, and the margins of its axis
MATRIX = 20  # classes, of which a whole table is shown
PAIRS = 30  # most frequent pairs of classes otherwise


def histogram(name: str, values: Tensor, digits: int) -> str:
    """How values (n,) are distributed, as a figure; a sentence where there are none."""
    kept = values[values.isfinite()].double()
    if not len(kept):
        return f"<figure><figcaption>{escape(name)}</figcaption><p>no values</p></figure>"
    lo, hi = float(kept.min()), float(kept.max())
    whole = bool((kept == kept.round()).all())
    bins = min(BINS, int(hi - lo) + 1) if whole else BINS
    hi = lo + bins * math.ceil((hi - lo + 1) / bins) if whole else hi if hi > lo else lo + 1
    counts = torch.histc(kept, bins, lo, hi).long().tolist()
    middle = f"median {float(kept.median()):.{digits}f}"
    return (
        f'<figure><figcaption>{escape(name)} <span class="aside">{middle}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}: {len(kept)} images from '
        f'{lo:.{digits}f} to {float(kept.max()):.{digits}f}, {middle}">{_bars(counts, lo, hi, digits)}</svg></figure>'
    )


def _bars(counts: list[int], lo: float, hi: float, digits: int) -> str:
    """Bars with their counts, and the ends of the axis."""
    room, tall = (WIDTH - 2 * LEFT) / len(counts), HEIGHT - BOTTOM - 4
    step, parts = (hi - lo) / len(counts), []
    for place, count in enumerate(counts):
        if count:
            size = max(1.0, tall * count / max(counts))
            start = lo + place * step
            parts.append(
                f'<rect x="{LEFT + place * room:.1f}" y="{HEIGHT - BOTTOM - size:.1f}" width="{max(1, room - 1):.1f}" '
                f'height="{size:.1f}"><title>{start:.{digits}f} to {start + step:.{digits}f}: {count}</title></rect>'
            )
    base = HEIGHT - BOTTOM
    ends = (
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - LEFT}" y2="{base}"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{lo:.{digits}f}</text>'
        f'<text x="{WIDTH - LEFT}" y="{HEIGHT - 6}" text-anchor="end">{hi:.{digits}f}</text>'
    )
    return "".join(parts) + ends


def class_table(true: Tensor, other: Tensor, names: list[str], other_name: str) -> str:
    """Counts of pairs of classes: all of them, or the most frequent; each is a button that filters by it."""
    pairs = Counter(zip(true.tolist(), other.tolist(), strict=True))
    if not pairs:
        return "<p>no images</p>"
    most = max(pairs.values())
    if len(names) > MATRIX:
        rows = "".join(
            f'<tr><th scope="row">{escape(names[a])}</th><td>{escape(names[b])}</td>{_cell(a, b, n, most, names)}</tr>'
            for (a, b), n in pairs.most_common(PAIRS)
        )
        return (
            f"<table><caption>The {min(PAIRS, len(pairs))} most frequent pairs of {len(pairs)}</caption>"
            f'<thead><tr><th scope="col">true class</th><th scope="col">{escape(other_name)}</th>'
            f'<th scope="col">images</th></tr></thead><tbody>{rows}</tbody></table>'
        )
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cell(a, b, pairs.get((a, b), 0), most, names) for b in range(len(names)))
        + "</tr>"
        for a, name in enumerate(names)
    )
    return (
        f'<table class="matrix"><caption>Rows: true class; columns: {escape(other_name)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(a: int, b: int, count: int, most: int, names: list[str]) -> str:
    """A count, darker the larger it is."""
    if not count:
        return "<td></td>"
    label = escape(f"{count} of {names[a]} as {names[b]}: show them")
    return (
        f'<td><button type="button" class="pair" data-true="{a}" data-other="{b}" aria-label="{label}" '
        f'style="--share:{math.sqrt(count / most):.3f}">{count}</button></td>'
    )
