"""An autoencoder, with a discriminator that judges its reconstructions or without."""

import dataclasses
import functools
import json
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
from flowjax.models.representation import with_encoder
from flowjax.objectives import Assembled
from flowjax.recipe import Autoencoder, Loaded, Request, Samples
from flowjax.recipe.base import shapes_of, traced
from flowjax.recipe.encoder import check_tokens
from flowjax.recipe.report import has_picture, make_judge
from flowjax.tasks.base import Part, Task
from flowjax.training.writers import write_json

EXTRACTOR = "extractor.json"


@fact("task", "autoencoding", "an autoencoder, with or without a discriminator", cite="rombach2021high")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoding(Task):
    """Trains an autoencoder and looks at reconstructions, always of the same examples.

    With `config.encoder`, a run whose network makes tokens of images, `config.network` is a decoder of these tokens:
    the encoder's weights are arguments of a training step, no gradient reaches them, the checkpoints hold the decoder
    alone, and the recipe names the run with the hash of its weights. Such a decoder learns by an objective for frozen
    encoders, `representation_autoencoding`.

    Attributes:
        num: Examples that are measured.
        batch: Examples that are measured at once.
        extractor: Spec of the run in whose features such an objective compares images, for example a classifier; its
            network has `features`. None is the encoder itself.

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
    extractor: Mapping[str, Any] | str | None = None

    sections: ClassVar[tuple[str, ...]] = ("network", "discriminator", "encoder", "objective")
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
        self._check_encoder()
        self.recipe.check_networks({"autoencoder": shapes_of(self.recipe.build_network)})
        spec, adversary = self.config.discriminator.to_dict(), self._objective.adversary
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

    def _check_encoder(self) -> None:
        """The encoder must be one, of these images, and the objective one for it."""
        name, asked = self.config.objective.name, getattr(self._objective, "frozen_encoder", False)
        if (self.encoder is None) == asked:
            raise ValueError(
                f"objective {name!r} is for a decoder behind a frozen encoder: name its run, "
                '--config.encoder="run(workdir=...)"'
                if asked
                else f"objective {name!r} trains an encoder too, and config.encoder is frozen: take "
                "representation_autoencoding"
            )
        if self.encoder is None:
            return
        recipe, source = self.encoder.recipe, self.source
        what = f"the encoder {self.encoder.workdir} (a run of the kind {recipe.kind})"
        if tuple(recipe.shape) != tuple(source.x.shape[1:]):
            raise ValueError(
                f"{what} does not fit: the shape of its examples is {tuple(recipe.shape)}, that of the data "
                f"{source.x.shape[1:]}"
            )
        check_tokens(what, self.encoder.networks[recipe.label], recipe.shape)
        self._check_range(what, recipe)

    def _check_range(self, what: str, recipe: Any) -> None:
        """What sees images in [0, 1] must belong to such, and the data be such."""
        for whose, scale in ((what, recipe), ("the data", self.source)):
            ends = [None if end is None else (end - scale.shift) / scale.scale for end in (scale.low, scale.high)]
            if ends != [-1.0, 1.0]:
                raise ValueError(f"{whose} must have images normalised to [-1, 1], which stands for [0, 1], got {ends}")

    @functools.cached_property
    def encoder(self) -> Loaded | None:
        """The run of the frozen encoder; None where the network has its own."""
        spec = self.config.encoder.to_dict()
        if not spec["name"]:
            return None
        run = specs.build("run", spec)
        if (run.which, run.average, run.dtype) != ("latest", None, None):
            raise ValueError(
                "an encoder is the newest checkpoint with the default average in its own precision: leave which, "
                "average and dtype out"
            )
        return run.load(self.mesh)

    @functools.cached_property
    def _extractor(self) -> Loaded | None:
        """The run in whose features images are compared."""
        if self.extractor is None:
            return None
        if not self._plain_objective.perceptual_weight:
            raise ValueError(
                "config.task.options.extractor is for distances of features, which count nothing with "
                "config.objective.options.perceptual_weight=0: leave it out, or give them a weight"
            )
        found = specs.build("run", self.extractor).load(self.mesh)
        network = found.networks[found.recipe.label]
        if not callable(getattr(network, "features", None)):
            raise ValueError(
                f"the network of {found.workdir}, a {type(network).__name__}, has no features(images) to compare by: "
                "take the run of a vit, or leave config.task.options.extractor out"
            )
        if tuple(found.recipe.shape) != tuple(self.source.x.shape[1:]):
            raise ValueError(
                f"the extractor {found.workdir} does not fit: the shape of its examples is "
                f"{tuple(found.recipe.shape)}, that of the data {self.source.x.shape[1:]}"
            )
        self._check_range(f"the extractor {found.workdir}", found.recipe)
        return found

    @functools.cached_property
    def recipe(self) -> Autoencoder:
        """How the autoencoder is built and used."""
        return self._recipe_in(".")

    def _recipe_in(self, workdir: str | Path) -> Autoencoder:
        runs = {} if self.encoder is None else {"encoder": self.encoder.entry(workdir)}
        return Autoencoder(network=self.config.network.to_dict(), runs=runs, **self.of_data())

    @property
    def training(self) -> Source:
        """The examples alone: neither labels nor what else belongs to them are used."""
        return dataclasses.replace(self.source, cond=None, num_classes=None, names=(), fields={})

    @functools.cached_property
    def _plain_objective(self) -> Any:
        return self.build_objective()

    @functools.cached_property
    def _objective(self) -> Any:
        if self._extractor is None:
            return self._plain_objective
        return self.build_objective(extractor=self._extractor.networks[self._extractor.recipe.label])

    @functools.cached_property
    def objective(self) -> Any:
        """Reconstruction, what latents cost, and the adversary."""
        if self.encoder is None:
            return self._objective
        frozen = {"encoder": self.encoder.networks[self.encoder.recipe.label]}
        return Assembled(self._objective, frozen=frozen, combine=with_encoder)

    @functools.cached_property
    def judge(self) -> Extractor:
        """The features in which reconstructions are compared with examples, trained when they are first needed."""
        return make_judge(self.source)

    def _build_discriminator(self, rngs: nnx.Rngs) -> nnx.Module:
        return specs.build("network", self.config.discriminator.to_dict(), rngs=rngs)

    def networks(self) -> dict[str, Part]:
        """The autoencoder, or its decoder, and the discriminator, of which no average is kept."""
        build = self.recipe.stored()["autoencoder"]
        parts = {"autoencoder": Part(build=build, optimizer=self.optimizer("autoencoder"))}
        if self.config.discriminator.name:
            judge = Part(build=self._build_discriminator, optimizer=self.optimizer("discriminator"), averaged=False)
            parts["discriminator"] = judge
        return parts

    def weights(self, state: Any, raw: bool = False) -> dict[str, Any]:
        """The autoencoder, with its encoder."""
        if self.encoder is None:
            return state.weights(raw)
        return self.recipe.assemble({**state.weights(raw), **self.objective.frozen})

    def check(self, workdir: Path) -> None:
        """Encoder and extractor must be those that the run began with.

        Raises:
            ValueError: One has other weights now.
        """
        try:
            if self.encoder is not None:
                self.encoder.check_same("frozen encoder", workdir, Autoencoder.load(workdir).runs["encoder"]["model"])
        except (FileNotFoundError, KeyError):
            return  # a new run
        try:
            began = json.loads((workdir / EXTRACTOR).read_text())["model"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if self._extractor is not None:
            self._extractor.check_same("feature extractor", workdir, began)

    def save(self, workdir: Path) -> None:
        """Writes `recipe.json`, and `extractor.json` where there is one."""
        self._recipe_in(workdir).save(workdir)
        if self._extractor is not None:
            record = {"workdir": str(self._extractor.workdir), "model": self._extractor.model}
            write_json(workdir / EXTRACTOR, record)

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
