"""Occlusion sensitivity: how much each window's zero-out takes from a class's score."""

from .fill import Fill, check_fill, of_one_batch
from .maps import METHODS, occlusion_map, occlusion_scores
from .scoring import Scorer

__all__ = ["METHODS", "Fill", "Scorer", "check_fill", "occlusion_map", "occlusion_scores", "of_one_batch"]
