"""Weights as single files, and those that others have published."""

from flowjax.weights.dinov2 import read_dinov2
from flowjax.weights.foreign import conv_kernel, dense_kernel, read_foreign
from flowjax.weights.kl_autoencoder import read_kl_autoencoder
from flowjax.weights.single_file import read, write
