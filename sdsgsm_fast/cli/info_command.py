"""The command `sdsgsm info`."""

from __future__ import annotations

import typer

from ..common.machine import machine
from ..kernels import backends


def info() -> None:
    """Tell versions, devices and backends, and why a backend is missing."""
    facts = [(name, str(value)) for name, value in machine().items()]
    facts += [(f"backend {name}", state) for name, state in backends.report().items()]
    width = max(len(name) for name, _ in facts)
    for name, state in facts:
        typer.echo(f"{name:<{width}}  {state}")
