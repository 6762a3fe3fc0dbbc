"""Measures of the quality of samples, one in each file, and the networks whose features they compare."""

from .feature_networks import load_feature_network
from .feature_statistics import FeatureStatistics
from .frechet_distance import FrechetDistance, frechet_distance
from .inception_score import inception_score
from .kernel_distance import kernel_distance
from .nearest_neighbors import nearest_distances
from .precision_recall import precision_recall
from .sliced_wasserstein import sliced_wasserstein

__all__ = [
    "FeatureStatistics",
    "FrechetDistance",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_feature_network",
    "nearest_distances",
    "precision_recall",
    "sliced_wasserstein",
]
