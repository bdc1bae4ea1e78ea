"""Runs over whole data sets: shards that survive a kill, a manifest, and what reads them again."""

from .attacking import attack_dataset
from .occluding import occlude_dataset
from .report import write_report
from .run import RunStopped
from .sets import AdversarialSet, MapSet, load, same_data
from .verify import Report, verify

__all__ = [
    "AdversarialSet",
    "MapSet",
    "Report",
    "RunStopped",
    "attack_dataset",
    "load",
    "occlude_dataset",
    "same_data",
    "verify",
    "write_report",
]
