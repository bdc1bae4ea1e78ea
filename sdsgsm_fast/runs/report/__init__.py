"""A set as one HTML page: figures, classes and a gallery."""

from .write import write_report

__all__ = ["write_report"]
