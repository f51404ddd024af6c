"""The recipe of an autoencoder: images to latents and back, nothing to sample."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from flowjax import evaluation
from flowjax.data import Source
from flowjax.models.representation import with_encoder
from flowjax.recipe.base import Base, from_values
from flowjax.recipe.request import Request
from flowjax.training.mesh import fill, make_mesh, over, put_batch


@jax.jit
def encode(network: Any, x: Float[Array, "B ..."]) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."] | None]:
    """Mean and log variance of the posterior of normalised examples; latents and None where there is no posterior."""
    found = network.encode(x)
    return found if isinstance(found, tuple) else (found, None)


@jax.jit
def decode(network: Any, z: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """The normalised examples of latents."""
    return network.decode(z)


def gathered(function: Callable[..., Any], network: Any, x: Num[np.ndarray, "B ..."], mesh: Mesh) -> Any:
    """The answer for one block of examples, computed on all devices; every process gets all of it."""
    with over(mesh):
        answer = function(network, put_batch(np.asarray(x, np.float32), mesh))
    return multihost_utils.process_allgather(answer, tiled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(Base):
    """How to rebuild and use a trained autoencoder; attributes are those of `Base`.

    Its network has `encode(x) -> (mean, log variance)` and `decode(z)`, of normalised examples and plain latents z;
    where latents are a function of the example, `encode(x) -> z`. The scale of latents is not part of it: whoever
    trains on them measures and keeps it (`flowjax.recipe.codec`).

    With the run "encoder" the autoencoder is that run's network and a decoder, `network`, whose weights alone the
    workdir holds (`flowjax.models.RepresentationAutoencoder`).

    Example:
        >>> from flax import nnx
        >>> options = {"image_shape": (8, 8, 1), "channels": 8, "multipliers": (1, 2), "groups": 4, "latent": 3}
        >>> scale = {"shift": 8.0, "scale": 8.0, "low": 0.0, "high": 16.0}
        >>> network, digits = {"name": "autoencoder", "options": options}, {"name": "digits", "options": {}}
        >>> recipe = Autoencoder(network=network, data=digits, shape=(8, 8, 1), num_classes=10, **scale)
        >>> recipe.latent_shape(nnx.eval_shape(lambda: recipe.build_network(nnx.Rngs(0))))
        (4, 4, 3)
    """

    kind: str = "autoencoder"

    label: ClassVar[str] = "autoencoder"

    def build_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new autoencoder, with its encoder."""
        own = super().build_network(rngs)
        if "encoder" not in self.runs:
            return own
        return self.assemble({self.label: own, "encoder": self._other.build_network(rngs)})[self.label]

    @property
    def _other(self) -> Base:
        """The recipe of the encoder."""
        return from_values(self.runs["encoder"]["recipe"])

    def stored(self) -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
        """The autoencoder; beside the run "encoder" the decoder alone."""
        return {self.label: super().build_network}

    def alone(self) -> "Autoencoder":
        """Without the run "encoder"."""
        if "encoder" not in self.runs:
            return self
        options = {"encoder": dict(self._other.network), "decoder": dict(self.network)}
        return dataclasses.replace(self, network={"name": "representation_autoencoder", "options": options}, runs={})

    def assemble(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """The decoder with the encoder in front of it."""
        if "encoder" not in self.runs:
            return dict(networks)
        whole = with_encoder({self.label: networks[self.label]}, networks)
        return {label: network for label, network in networks.items() if label != "encoder"} | whole

    def latent_shape(self, network: Any) -> tuple[int, ...]:
        """Shape of the latents of one example.

        Raises:
            ValueError: A network that does not encode and decode examples of this recipe.
        """
        x = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        for name in ("encode", "decode"):
            if not callable(getattr(network, name, None)):
                raise ValueError(f"the network {self.network['name']!r} is no autoencoder: it has no {name}")
        try:
            mean, log_variance = jax.eval_shape(encode, network, x)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the network does not encode examples of shape {self.shape}: {error}") from error
        if log_variance is not None and mean.shape != log_variance.shape:
            raise ValueError(f"the network encodes means {mean.shape[1:]} with log variances {log_variance.shape[1:]}")
        try:
            answer = jax.eval_shape(lambda network, z: network.decode(z), network, mean)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the network does not decode latents of shape {mean.shape[1:]}: {error}") from error
        if answer.shape != x.shape:
            raise ValueError(f"the network decodes {answer.shape[1:]} where examples have the shape {self.shape}")
        return mean.shape[1:]

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """Examples must be encoded, and their latents decoded to their shape."""
        self.latent_shape(shapes["autoencoder"])

    def check(self, request: Request) -> None:
        """Refuses every request for samples."""
        raise ValueError(
            "an autoencoder draws no samples: train a flow on its latents, with "
            '--config.codec="run(workdir=...)", and sample from that; flowjax.evaluate measures the autoencoder'
        )

    def reconstruct(
        self, network: Any, x: Num[np.ndarray, "N ..."], *, batch: int = 200, mesh: Mesh | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Examples through the mean of their latents and back, block by block.

        Args:
            network: The autoencoder.
            x: Examples in the data's own scale.
            batch: Examples at once, rounded up to a multiple of the devices.
            mesh: Devices to use; all by default.

        Yields:
            Examples, what they become (both in the data's own scale), mean and log variance of their latents, or None.
        """
        mesh = make_mesh() if mesh is None else mesh
        batch = fill(min(batch, len(x)), mesh)
        for first in range(0, len(x), batch):
            rows = np.asarray(x[first : first + batch])
            # The last block is filled up, so that nothing compiles twice.
            block = np.resize((rows - self.shift) / self.scale, (batch, *rows.shape[1:]))
            mean, log_variance = gathered(encode, network, block, mesh)
            y = gathered(decode, network, mean, mesh) * np.float32(self.scale) + np.float32(self.shift)
            spread = None if log_variance is None else log_variance[: len(rows)]
            yield rows, y[: len(rows)], mean[: len(rows)], spread

    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """What reconstructions through the mean of the latents lose.

        Args:
            networks: From `load_run`.
            source: The data, in the scale of the run.
            request: Number of examples, seed of their choice, and how many at once.
            judge: The features of the Frechet distance; by default those of the data.
            mesh: Devices to use; all by default.

        Returns:
            "psnr", 10 log10(range^2 / mean squared error) in decibels, where the range is that of the data, or of these
            examples where the data has no bounds; "error", the mean absolute error in the data's own scale; "kl", the
            divergence of the posterior from N(0, 1) per example, in nats, where there is a posterior; "latent_mean" and
            "latent_std" of all numbers of the latents' means, of which a `latent_scale` is 1 / latent_std; "FD[...]",
            the Frechet distance between reconstructions and examples in the features of `judge`.
        """
        judge = evaluation.default_extractor(source) if judge is None else judge
        some = np.asarray(source.take(request.num, request.seed).x)
        parts = zip(*self.reconstruct(networks["autoencoder"], some, batch=request.batch, mesh=mesh), strict=True)
        *known, spread = map(list, parts)
        x, y, mean = (np.concatenate(part).astype(np.float64) for part in known)
        if bad := len(y) - int(np.isfinite(y.reshape(len(y), -1)).all(1).sum()):
            return {"bad_samples": bad, "psnr": math.nan, "error": math.nan, f"FD[{judge.digest}]": math.nan}
        low, high = (
            float(x.min()) if self.low is None else self.low,
            float(x.max()) if self.high is None else self.high,
        )
        squared = max(float(np.mean((x - y) ** 2)), np.finfo(np.float64).tiny)
        kl = {}
        if spread[0] is not None:
            log_variance = np.concatenate(spread).astype(np.float64)
            divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
            kl["kl"] = float(divergence.reshape(len(x), -1).sum(1).mean())
        return {
            "psnr": 10 * math.log10((high - low) ** 2 / squared),
            "error": float(np.mean(np.abs(x - y))),
            **kl,
            "latent_mean": float(mean.mean()),
            "latent_std": float(mean.std()),
            f"FD[{judge.digest}]": evaluation.frechet_distance(judge.features(y), judge.features(x)),
        }
