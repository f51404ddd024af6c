"""What generated samples are worth: numbers against real data, and pictures."""

from flowjax.evaluation import pictures
from flowjax.evaluation.classifier import Classifier, train_classifier
from flowjax.evaluation.frechet import frechet_distance
from flowjax.evaluation.report import class_report, nearest_distances, table, within_class_spread

__all__ = [
    "Classifier",
    "class_report",
    "frechet_distance",
    "nearest_distances",
    "pictures",
    "table",
    "train_classifier",
    "within_class_spread",
]
