"""An autoencoder, with a discriminator that judges its reconstructions or without."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowjax import _checks, specs
from flowjax.data import Source
from flowjax.evaluation import Extractor, pictures
from flowjax.facts import fact
from flowjax.recipe import Autoencoder, Request, Samples
from flowjax.recipe.base import shapes_of, traced
from flowjax.recipe.report import has_picture, make_judge
from flowjax.tasks.base import Part, Task


@fact("task", "autoencoding", "an autoencoder, with or without a discriminator", cite="rombach2021high")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoding(Task):
    """Trains an autoencoder and looks at reconstructions, always of the same examples.

    Attributes:
        num: Examples that are measured.
        batch: Examples that are measured at once.

    Example:
        >>> import jax
        >>> from flowjax import data
        >>> from flowjax.configs.base import base, spec
        >>> from flowjax.tasks import make_task
        >>> from flowjax.training import make_mesh
        >>> network = spec("autoencoder", image_shape=(8, 8, 1), channels=8, multipliers=(1, 2), groups=4)
        >>> objective = spec("autoencoding", adversary=None)
        >>> config = base("autoencoding", data=spec("digits"), network=network, objective=objective)
        >>> task = make_task(config, data.digits(), make_mesh(), jax.random.key(0))
        >>> list(task.networks()), task.recipe.kind
        (['autoencoder'], 'autoencoder')
    """

    num: int = 1000
    batch: int = 200

    sections: ClassVar[tuple[str, ...]] = ("network", "discriminator", "objective")
    metrics: ClassVar[Mapping[str, int]] = {"psnr": -1, "error": 1, "FD": 1}

    def __post_init__(self) -> None:
        """Checks what the constructors of its parts cannot see.

        Raises:
            ValueError: Networks that do not take the data, or a discriminator that the objective does not ask for, or
                that it misses.
        """
        super().__post_init__()
        _checks.whole(_checks.COUNT, num=self.num, batch=self.batch)
        self.recipe.check_sizes(self.num, self.batch)
        self.recipe.check_networks({"autoencoder": shapes_of(self.recipe.build_network)})
        spec, adversary = self.config.discriminator.to_dict(), self.objective.adversary
        if (adversary is None) != (not spec["name"]):
            raise ValueError(
                f"config.discriminator is {spec['name'] or 'none'}, and the objective has adversary={adversary}: name "
                "a network and a loss of it, or write --config.discriminator=none and adversary=None"
            )
        if spec["name"]:
            try:
                logits = traced(
                    shapes_of(self._build_discriminator), jax.ShapeDtypeStruct((2, *self.recipe.shape), jnp.float32)
                )
            except ValueError as error:
                shape = self.recipe.shape
                raise ValueError(f"the discriminator does not take examples of shape {shape}: {error}") from error
            if not hasattr(logits, "shape") or logits.shape[:1] != (2,):
                raise ValueError(f"the discriminator must answer with logits (B, ...), got {logits}")

    @functools.cached_property
    def recipe(self) -> Autoencoder:
        """How the autoencoder is built and used."""
        return Autoencoder(network=self.config.network.to_dict(), **self.of_data())

    @property
    def training(self) -> Source:
        """The examples alone: neither labels nor what else belongs to them are used."""
        return dataclasses.replace(self.source, cond=None, num_classes=None, names=(), fields={})

    @functools.cached_property
    def objective(self) -> Any:
        """Reconstruction, prior and adversary."""
        return self.build_objective()

    @functools.cached_property
    def judge(self) -> Extractor:
        """The features in which reconstructions are compared with examples, trained when they are first needed."""
        return make_judge(self.source)

    def _build_discriminator(self, rngs: nnx.Rngs) -> nnx.Module:
        return specs.build("network", self.config.discriminator.to_dict(), rngs=rngs)

    def networks(self) -> dict[str, Part]:
        """The autoencoder, and the discriminator, of which no average is kept."""
        parts = {"autoencoder": Part(build=self.recipe.build_network, optimizer=self.optimizer("autoencoder"))}
        if self.config.discriminator.name:
            judge = Part(build=self._build_discriminator, optimizer=self.optimizer("discriminator"), averaged=False)
            parts["discriminator"] = judge
        return parts

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json`."""
        self.recipe.save(workdir)

    def show(self, networks: Mapping[str, Any], path: Path) -> None:
        """Examples, evenly spread over the data, each above what it becomes: 30, of a form 20, of a small set ten."""
        form = self.recipe.build_form()
        if form is None and (not has_picture(self.recipe) or len(self.recipe.shape) != 3):
            return
        size = len(self.source.x)
        shown = 30 if form is None else 20
        x = np.asarray(self.source.x[np.linspace(0, size - 1, shown if size >= shown else min(size, 10)).astype(int)])
        found = self.recipe.reconstruct(networks["autoencoder"], x, batch=self.batch, mesh=self.mesh)
        y = np.concatenate([block[1] for block in found])
        if jax.process_index() == 0:
            rows = [part[i : i + 10] for i in range(0, len(x), 10) for part in (x, y)]
            if form is not None:
                made = np.concatenate(rows).astype(np.float32)
                form.picture(Samples(x=made, cond=None, evaluations=0, network_calls=0), path)
                return
            low = float(x.min()) if self.recipe.low is None else self.recipe.low
            high = float(x.max()) if self.recipe.high is None else self.recipe.high
            pictures.grid(np.concatenate(rows), path, low=low, high=max(high, low + 1e-6), columns=min(10, len(x)))

    def assess(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """What reconstructions lose, see `flowjax.recipe.Autoencoder.assess`."""
        request = Request(num=self.num, batch=self.batch)
        return self.recipe.assess(networks, self.source, request, judge=self.judge, mesh=self.mesh)
