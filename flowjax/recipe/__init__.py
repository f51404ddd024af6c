"""Recipes: what using a trained run needs besides its weights, stored as `recipe.json` in the workdir."""

from flowjax.recipe.autoencoder import Autoencoder
from flowjax.recipe.base import Base
from flowjax.recipe.chain import Chain, make_chain
from flowjax.recipe.codecs import Codec, Identity, Patch, RunCodec
from flowjax.recipe.compiled import Compiled, compile_sampler
from flowjax.recipe.densities import ClassLogProbability
from flowjax.recipe.encoder import EncoderRecipe, import_dinov2
from flowjax.recipe.fixed import Fixed
from flowjax.recipe.flow import Recipe
from flowjax.recipe.regression import RegressionRecipe
from flowjax.recipe.request import Request, Samples
from flowjax.recipe.runs import WEIGHTS, Loaded, Run, export, export_run, load, load_run

_ALL: tuple[type[Base], ...] = (Recipe, Autoencoder, Fixed, RegressionRecipe, EncoderRecipe, Chain)
KINDS = {recipe.kind: recipe for recipe in _ALL}
"""The recipes by kind."""
