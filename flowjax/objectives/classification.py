"""Classification: cross-entropy with smoothed labels, on inputs prepared at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.objectives.base import seed, with_keys
from flowjax.objectives.flow_matching import make_draws
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath


@pytree
class ClassificationDraws:
    """Everything random of one training step.

    Attributes:
        inputs: Positional arguments of the network, leading axis B.
        cond: Labels, (B,).
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> batch = {"x1": jnp.zeros((4, 2)), "cond": jnp.arange(4)}
        >>> draws = fj.objectives.Classification().draw(jax.random.key(0), batch)
        >>> draws.inputs[0].shape, draws.cond.tolist()
        ((4, 2), [0, 1, 2, 3])
    """

    inputs: tuple[Any, ...]
    cond: Int[Array, " B"]
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "classification",
    "cross-entropy with smoothed labels on inputs prepared at random",
    cite="szegedy2015rethinking",
    tasks=("classification", "clouds"),
)
@pytree
class Classification:
    """Trains `networks(*inputs) -> logits (B, C)`.

        loss = -sum_c q_c log softmax(network(*inputs))_c,   q = (1 - eps) onehot(cond) + eps / C;

    for eps = 0 the minimiser is the conditional probability of the class.

    With a `noise_path` the network is asked about noisy examples, networks(x_t, t): what classifier guidance needs
    (Dhariwal and Nichol, 2105.05233, section 4).

    Attributes:
        prepare: Function (key, x1 (B, ...)) -> tuple of inputs; (x1,) unless given.
        smoothing: eps in [0, 1).
        noise_path: x_t = alpha(t) x1 + sigma(t) noise of a flow; None leaves the examples as they are.
        times: Law of t with a `noise_path`.

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens and Wojna (2016), Rethinking the Inception Architecture for Computer Vision,
        section 7, arXiv:1512.00567.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.Classification()
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((2, 3)), "cond": jnp.array([0, 1])})
        >>> per_example, metrics = objective.loss(lambda x: jnp.zeros((2, 4)), draws)
        >>> round(float(per_example[0]), 3)  # log 4
        1.386
    """

    prepare: Callable[[Key[Array, ""], Array], tuple[Any, ...]] | None = None
    smoothing: float = 0.0
    noise_path: GaussianPath | None = part("path", None)
    times: TimeLaw = part("time_law", Uniform())

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: smoothing is outside [0, 1); `prepare` beside a noise path, or times that are no law.
        """
        object.__setattr__(self, "times", check_law(self.times))
        if self.noise_path is not None and self.prepare is not None:
            raise ValueError("inputs are noisy examples of a path, or what prepare makes of them: leave one out")
        if isinstance(self.smoothing, (int, float)) and not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must be in [0, 1)")

    def draw(
        self, key: Key[Array, ""], batch: dict[str, Array], memory: Any = None, *, step: Any = 0
    ) -> ClassificationDraws:
        """Prepares the inputs of a batch {"x1": (B, ...), "cond": (B,)}."""
        x1 = batch["x1"]
        if self.noise_path is not None:
            drawn = make_draws(key, batch, self.times, 0.0, None)
            inputs: tuple[Any, ...] = (self.noise_path.interpolate(drawn.t, drawn.x0, x1), drawn.t)
        else:
            inputs = (x1,) if self.prepare is None else self.prepare(key, x1)
        # From another branch of the key, so that what `prepare` draws stays what it was.
        for_network = jax.random.fold_in(jax.random.clone(key), 0x64726F70)
        seeds = jax.vmap(seed)(jax.random.split(for_network, len(x1)))
        return ClassificationDraws(inputs=inputs, cond=batch["cond"], seeds=seeds)

    def loss(
        self, networks: Callable, draws: ClassificationDraws
    ) -> tuple[Float[Array, " B"], dict[str, Float[Array, " B"]]]:
        """Cross-entropy of each example, and "accuracy"."""
        logits = with_keys(networks, draws.seeds)(*draws.inputs)
        log_p = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(log_p, draws.cond[:, None], -1)[:, 0]
        loss = -(1 - self.smoothing) * right - self.smoothing * log_p.mean(-1)
        return loss, {"accuracy": (logits.argmax(-1) == draws.cond).astype(loss.dtype)}
