"""Errors of others in a line."""

from __future__ import annotations

LONGEST = 300  # characters


def first_line(error: BaseException, *, last: bool = False) -> str:
    """The first line of an error's message, or the last, not too long; its kind where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if last else lines[0]) if lines else type(error).__name__


def one_line(text: str) -> str:
    """A text from a file as part of a message: in one line and not too long."""
    flat = "".join(c if c.isprintable() else "?" for c in text)
    return flat if len(flat) <= LONGEST else flat[:LONGEST] + "…"
