"""What generated samples are worth: numbers against real data, and pictures."""

from flowjax.evaluation import pictures
from flowjax.evaluation.classifier import Classifier, train_classifier
from flowjax.evaluation.estimates import Estimate
from flowjax.evaluation.extractors import (
    Extractor,
    Foreign,
    ImageClassifier,
    Raw,
    default_extractor,
    load_extractor,
    network_extractor,
    train_network,
)
from flowjax.evaluation.frechet import frechet_distance
from flowjax.evaluation.kernel import kernel_distance
from flowjax.evaluation.likelihood import bits_per_dimension, negative_log_likelihood
from flowjax.evaluation.manifold import manifold_report
from flowjax.evaluation.report import class_report, nearest_distances, sample_report, table, within_class_spread
from flowjax.evaluation.straightness import straightness
from flowjax.evaluation.transport import energy_distance, sliced_wasserstein
from flowjax.evaluation.two_sample import TwoSample, two_sample_test

__all__ = [
    "Classifier",
    "Estimate",
    "Extractor",
    "Foreign",
    "ImageClassifier",
    "Raw",
    "TwoSample",
    "bits_per_dimension",
    "class_report",
    "default_extractor",
    "energy_distance",
    "frechet_distance",
    "kernel_distance",
    "load_extractor",
    "manifold_report",
    "nearest_distances",
    "negative_log_likelihood",
    "network_extractor",
    "pictures",
    "sample_report",
    "sliced_wasserstein",
    "straightness",
    "table",
    "train_classifier",
    "train_network",
    "two_sample_test",
    "within_class_spread",
]
