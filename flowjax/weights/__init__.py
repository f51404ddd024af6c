"""Weights as single files, and those that others have published."""

from flowjax.weights.dinov2 import read_dinov2
from flowjax.weights.single_file import read, write
