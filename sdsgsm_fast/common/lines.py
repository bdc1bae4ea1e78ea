"""Errors of others in a line."""

from __future__ import annotations


def first_line(error: BaseException, *, last: bool = False) -> str:
    """The first line of an error's message, or the last; its kind where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if last else lines[0]) if lines else type(error).__name__
