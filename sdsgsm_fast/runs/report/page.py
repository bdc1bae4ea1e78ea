"""The page itself: text, figures and the gallery's data in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from typing import Any

NAMES = {
    "images": "images", "skipped": "skipped, as the model misclassifies them", "attacked": "attacked",
    "fooled": "fooled", "success_rate": "success rate", "l2": "ℓ2, mean", "linf": "ℓ∞·255, mean", "ssim": "SSIM, mean",
    "updates": "updates, mean", "forward": "forward passes, mean", "backward": "backward passes, mean",
    "right": "right", "accuracy": "accuracy", "confidence": "confidence, mean", "peak": "peak of a map, mean",
    "least": "least value of a map, mean",
}  # fmt: skip
SHARES = ("success_rate", "accuracy")


def page_of(
    *,
    title: str,
    about: list[tuple[str, str]],
    summary: dict[str, Any],
    figures: list[str],
    table: str,
    gallery: dict[str, Any],
) -> str:
    """A page.

    Parameters
    ----------
    title, about, summary
        Of the set: text and figures, escaped here.
    figures, table
        HTML, escaped already.
    gallery
        What the page's script takes, as JSON.
    """
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing but this script runs, and nothing is loaded: whatever stands in the names of classes or files.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    facts = "".join(f"<tr><th scope='row'>{escape(NAMES.get(k, k))}</th><td>{_figure(k, v)}</td></tr>"
                    for k, v in summary.items())  # fmt: skip
    settings = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in about)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#gallery">To the gallery</a>
<header><h1>{escape(title)}</h1></header>
<main>
<div class="top">
<section aria-labelledby="summary"><h2 id="summary">Summary</h2>
<table class="summary"><tbody>{facts}</tbody></table>
<details><summary>Settings</summary><dl>{settings}</dl></details></section>
<section aria-labelledby="classes"><h2 id="classes">Classes</h2><div class="wide">{table}</div></section>
</div>
<section aria-labelledby="distributions"><h2 id="distributions">Distributions</h2>
<div class="figures">{"".join(figures)}</div></section>
<section id="gallery" aria-labelledby="pictures" tabindex="-1"><h2 id="pictures">Gallery</h2>
<noscript><p>The gallery needs JavaScript.</p></noscript>
</section>
</main>
<dialog aria-labelledby="shown"></dialog>
<script type="application/json" id="data">{_inline(gallery)}</script>
<script>{script}</script>
</body>
</html>
"""


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    if name == "linf":
        return f"{value * 255:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _inline(value: Any) -> str:
    """JSON that ends no script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
