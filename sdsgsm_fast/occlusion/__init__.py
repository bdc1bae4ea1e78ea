"""Occlusion sensitivity: how much each window's zero-out takes from a class's score."""

from .maps import METHODS, occlusion_map, occlusion_scores, score_windows

__all__ = ["METHODS", "occlusion_map", "occlusion_scores", "score_windows"]
