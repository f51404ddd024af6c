"""Data sets, in memory or on disk, and the order in which training reads them."""

from flowjax.data import captions, fashion, shapes
from flowjax.data.batches import Augment, Batches
from flowjax.data.files import images, npz
from flowjax.data.latents import cache_latents
from flowjax.data.loading import PLACES, lies_in, load, of_run
from flowjax.data.pairs import Pairs
from flowjax.data.prepared import store, tfds
from flowjax.data.records import Records
from flowjax.data.sources import Source, as_trained, blank, digits, laws, photographs, synthetic, toy2d
from flowjax.data.tables import parquet

__all__ = [
    "PLACES",
    "Augment",
    "Batches",
    "Pairs",
    "Records",
    "Source",
    "as_trained",
    "blank",
    "cache_latents",
    "captions",
    "digits",
    "fashion",
    "images",
    "laws",
    "lies_in",
    "load",
    "npz",
    "of_run",
    "parquet",
    "photographs",
    "shapes",
    "store",
    "synthetic",
    "tfds",
    "toy2d",
]
