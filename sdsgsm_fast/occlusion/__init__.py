"""Occlusion sensitivity: how much each window's zero-out takes from a class's score."""

from .maps import METHODS, occlusion_map, occlusion_scores
from .scoring import Scorer

__all__ = ["METHODS", "Scorer", "occlusion_map", "occlusion_scores"]
