"""Weights as single files."""

from flowjax.weights.single_file import read, write
