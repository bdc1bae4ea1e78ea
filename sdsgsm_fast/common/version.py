"""The package's version, without loading anything else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Version of the installed distribution; "0+unknown" in a source tree."""
    try:
        return version("sdsgsm-fast")
    except PackageNotFoundError:
        return "0+unknown"
