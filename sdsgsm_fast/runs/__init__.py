"""Runs over whole data sets: shards that survive a kill, a manifest, and what reads them again."""

from .adversarial_set import AdversarialSet, load
from .run import RunStopped, attack_dataset
from .verify import Report, verify

__all__ = ["AdversarialSet", "Report", "RunStopped", "attack_dataset", "load", "verify"]
