"""What a run trains, as the train main sees it; `Generation` is the usual one, a generative flow."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax import data
from flowjax.evaluation import Extractor
from flowjax.recipe import Recipe
from flowjax.training.report import make_judge, measure, picture, picture_ways


class Task(Protocol):
    """A network, its loss, and how it is looked at. The methods that look run on all processes."""

    @property
    def objective(self) -> Any:
        """The training loss."""

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new network."""

    def save(self, workdir: Path) -> None:
        """Writes what is needed to rebuild the network."""

    def show(self, network: Any, path: Path) -> None:
        """Writes a picture of what the network does."""

    def assess(self, network: Any) -> dict[str, Any]:
        """How good the network is, in numbers."""

    def finish(self, network: Any, workdir: Path) -> None:
        """Writes further pictures at the end of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Trains a generative flow and looks at its samples, always from the same noise.

    Attributes:
        recipe: How the flow is built and sampled.
        objective: The training loss.
        source: The data.
        num: Samples to measure.
        batch: Samples at once.
        key: Of all noise.
        mesh: Where samples are made.
    """

    recipe: Recipe
    objective: Any
    source: data.Source
    num: int
    batch: int
    key: Key[Array, ""]
    mesh: Mesh

    @property
    def _sampling(self) -> Mapping[str, Any]:
        return dict(key=jax.random.clone(self.key), batch=self.batch, mesh=self.mesh)

    @functools.cached_property
    def judge(self) -> Extractor:
        """What samples are measured by, trained when it is first needed."""
        return make_judge(self.source)

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new network."""
        return self.recipe.build_network(rngs)

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json`."""
        self.recipe.save(workdir)

    def show(self, network: Any, path: Path) -> None:
        """Ten samples per class, or up to 10,000 points."""
        recipe = self.recipe
        num = min(self.num, 10 * (recipe.num_classes or 1000))
        samples = recipe.sample(
            recipe.field(recipe.flow(network)), num, cond=recipe.balanced(num), start=self.source, **self._sampling
        )
        if jax.process_index() == 0:
            picture(recipe, samples, path, self.source)

    def assess(self, network: Any) -> dict[str, Any]:
        """What the network generates, in numbers."""
        flow = self.recipe.flow(network)
        return measure(self.recipe, flow, self.source, self.num, judge=self.judge, **self._sampling)

    def finish(self, network: Any, workdir: Path) -> None:
        """Pictures the ways of points in the plane."""
        if jax.process_index() == 0 and self.recipe.shape == (2,):
            picture_ways(self.recipe, self.recipe.flow(network), workdir / "ways.png", jax.random.clone(self.key))
