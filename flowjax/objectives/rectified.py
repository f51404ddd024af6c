"""Rectified diffusion and reflow: a model learns the pairs of noise and sample that another one has drawn.

On pairs of a deterministic sampler noise and data are functions of each other, and the best prediction is constant
along each way of the path: one step then leads from noise to data, whatever the path and the prediction.

References:
    Wang et al. (2024), Rectified Diffusion: Straightness Is Not Your Need in Rectified Flow, arXiv:2410.07303.
    Liu, Gong and Liu (2022), Flow Straight and Fast (reflow), arXiv:2209.03003.
    Liu et al. (2023), InstaFlow, arXiv:2309.06380.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Key

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import with_keys
from flowjax.objectives.distances import METRICS, distance
from flowjax.objectives.flow_matching import Draws, check_answer, make_draws, off_ends
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_prediction, check_time_and_state


@fact(
    "objective",
    "rectified",
    "regression on pairs of noise and sample (reflow)",
    cite="wang2024rectified",
    tasks=("generation", "distillation", "adapters"),
)
@pytree
class Rectified:
    """Regression on stored pairs (x0, x1) of noise and what a sampler made of it.

    With x_t = alpha(t) x1 + sigma(t) x0, where the authors of rectified diffusion compare data,

        x1_hat = the data prediction that network(x_t, t, cond) amounts to,
        loss = mean of sqrt((x1_hat - x1)^2 + c^2) - c over the elements of an example.

    `space="velocity", metric="l2"` on the linear path is reflow (InstaFlow). Pairs come with the batch, from the
    coupling `stored(path=...)` for example; a batch without is refused, because without them this is flow matching.
    Guidance that the pairs were drawn with is in them: sample with none, or little.

    Where a prediction does not determine the other at an end of the path, `draw` moves times away from it by 0.001.

    Attributes:
        path: The path from noise to data; it need not be that of the model that drew the pairs.
        prediction: What the network outputs: "velocity", "noise", "data", "score" or "v".
        times: Distribution of training times.
        space: The prediction in which network and pair are compared. Errors of the data grow like 1/alpha for networks
            that predict the noise.
        metric: "pseudo_huber" or "l2".
        c: Error from which "pseudo_huber" is no longer quadratic, at least 0.
        label_dropout: Probability in [0, 1] that an example's condition is replaced by `null`.
        null: The null condition: a pytree of scalars like one example's condition.

    Raises:
        ValueError: An unknown prediction or metric, a number outside its range, dropout without a null condition.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.Rectified(path=fj.paths.Linear())
        >>> x0 = jax.random.normal(jax.random.key(0), (4, 2))
        >>> draws = objective.draw(jax.random.key(1), {"x0": x0, "x1": 2 + x0 / 2})
        >>> exact = lambda x, t, cond: 2 - 0.5 * (x - 2 * t[:, None]) / (1 - t[:, None] / 2)
        >>> bool(objective.loss(exact, draws)[0].max() < 1e-6)
        True
    """

    path: GaussianPath = part("path")
    prediction: str = static("velocity")
    times: TimeLaw = part("time_law", Uniform())
    space: str = static("data")
    metric: str = static("pseudo_huber")
    c: float = 1e-3
    label_dropout: float = 0.0
    null: Any = None

    def __post_init__(self) -> None:
        """Checks the options."""
        check_prediction("prediction", self.prediction)
        check_prediction("space", self.space)
        choose("metric", self.metric, METRICS)
        real("[0, inf)", c=self.c)
        real("[0, 1]", label_dropout=self.label_dropout)
        object.__setattr__(self, "times", check_law(self.times))
        if self.label_dropout and self.null is None:
            raise ValueError("label_dropout needs null=, the condition that stands for none (num_classes for labels)")

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Draws:
        """Draws times and dropped conditions; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: The pairs "x0" and "x1", (B, ...) each, and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.

        Raises:
            ValueError: A batch without "x0", or with one of another shape.
        """
        x0 = batch.get("x0")
        if x0 is None or x0.shape != batch["x1"].shape:
            found = "has none" if x0 is None else f"has {x0.shape} for data of shape {batch['x1'].shape}"
            raise ValueError(
                f'rectified learns pairs: the noise of each example, batch["x0"]; the batch {found}. Draw pairs with '
                "`python -m flowjax.sample --pairs=FOLDER` and train with --config.coupling=\"stored(path='FOLDER')\""
            )
        draws = make_draws(key, batch, self.times, self.label_dropout, self.null)
        draws = dataclasses.replace(draws, x0=x0.astype(draws.x0.dtype))
        return off_ends(draws, *(self.path.determines(self.prediction, self.space, t) for t in (0.0, 1.0)))

    def loss(self, networks: Callable[..., Array], draws: Draws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Distance of the network's prediction to the pair.

        Args:
            networks: The network, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the mean square in the same space, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        t = check_time_and_state(draws.t, draws.x1)
        x = self.path.interpolate(t, draws.x0, draws.x1)
        value = with_keys(networks, draws.seeds)(x, t, draws.cond)
        check_answer(value, draws.x1)
        found = self.path.convert(value, given=self.prediction, to=self.space, t=t, x=x)
        error = found - self.path.target(self.space, t, draws.x0, draws.x1)
        return distance(self.metric, error, self.c), {"mse": distance("l2", error, 0.0)}
