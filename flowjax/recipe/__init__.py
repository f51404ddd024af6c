"""Recipes: what using a trained run needs besides its weights, stored as `recipe.json` in the workdir."""

from flowjax.recipe.autoencoder import Autoencoder
from flowjax.recipe.base import Base, Request, Samples
from flowjax.recipe.flow import Recipe
from flowjax.recipe.runs import WEIGHTS, export, export_run, load, load_run, run_entry

KINDS: dict[str, type[Base]] = {recipe.kind: recipe for recipe in (Recipe, Autoencoder)}
"""The recipes by kind."""
