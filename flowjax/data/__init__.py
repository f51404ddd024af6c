"""Data sets as arrays in memory, and the order in which training reads them."""

from flowjax.data.batches import Batches
from flowjax.data.sources import Source, digits, load, toy2d

__all__ = ["Batches", "Source", "digits", "load", "toy2d"]
