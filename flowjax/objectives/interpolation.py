"""Objectives of stochastic interpolants: regress a field of x_t = c0 x0 + c1 x1 + g z on its value at (x0, x1, z)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import seed, with_keys
from flowjax.objectives.flow_matching import check_answer
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import Interpolant
from flowjax.paths.base import check_time_and_state, divide, expand

Field = Literal["velocity", "drift", "forward_drift", "score", "denoiser", "source", "data"]
CUT = 1e-4  # distance from t = 0 and 1 for targets without a bound there


@pytree
class InterpolationDraws:
    """Everything random of one training step.

    Attributes:
        x0: source, (B, ...).
        x1: data, (B, ...).
        z: latent noise, (B, ...).
        t: times, (B,).
        cond: condition with leading axis B, or None.
        seeds: seeds of the network's dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.Interpolation(interpolant=fj.paths.Interpolant(), prediction="velocity")
        >>> draws = objective.draw(jax.random.key(0), {"x0": jnp.zeros((4, 2)), "x1": jnp.ones((4, 2))})
        >>> draws.z.shape, draws.t.shape  # the latent noise and the times
        ((4, 2), (4,))
    """

    x0: Float[Array, "B ..."]
    x1: Float[Array, "B ..."]
    z: Float[Array, "B ..."]
    t: Float[Array, " B"]
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "interpolation",
    "regression on a field of a stochastic interpolant",
    cite="albergo2023stochastic",
    tasks=("generation", "adapters"),
)
@pytree
class Interpolation:
    """Regression on a field of a stochastic interpolant.

        prediction       target                             minimiser
        velocity         d_t I + g' z                       b
        drift            d_t I                              v = b + g g' s
        forward_drift    d_t I + (g' - eps / g) z           b + eps s, the drift of the SDE with constant diffusion eps
        score            -z / g                             s
        denoiser         z                                  E[z | x_t] = -g s
        source, data     x0, x1                             E[x0 | x_t], E[x1 | x_t]

    with d_t I = c0' x0 + c1' x1. Near t = 0 and 1 the targets g' z and z / g have no bound. The pair x+- = I +- g z
    with targets of opposite z (antithetic) keeps the variance of the gradient bounded there; it is made for those
    targets, as in the paper. The denoiser is positive here, E[z | x_t]; the published code learns its negative.

    "regression" is mean |f - target|^2 over dimensions, averaged over an antithetic pair. "energy" is
    |f|^2 / 2 - f . target summed over dimensions and added over the pair, as in the published code; it differs by a
    constant and may be negative.

    Args:
        interpolant: the path between source and data.
        prediction: the field, see the table.
        diffusion: constant eps of the forward drift. With `Interpolant(form="linear", gamma="brownian", scale=2 eps)`
            and x0 as condition the forward drift leads from the point x0 to a draw of the data given x0.
        form: "regression" or "energy".
        antithetic: pairs x+-; None makes them for velocity, forward_drift and score.
        times: distribution of training times.
        weight: function of t (B,) that returns weights (B,); None is 1.

    Raises:
        ValueError: an unknown prediction or form.

    References: Albergo, Boffi, Vanden-Eijnden (2303.08797), sections 2.2, 4 and 6; Tong et al. (2302.00482,
    2307.03672).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = Interpolation(interpolant=Interpolant(), prediction="denoiser")
        >>> draws = objective.draw(jax.random.key(0), {"x0": jnp.zeros((4, 2)), "x1": jnp.ones((4, 2))})
        >>> objective.loss(lambda x, t, cond: jnp.zeros_like(x), draws)[0].shape
        (4,)
    """

    interpolant: Interpolant = part("path")
    prediction: str = static("velocity")
    diffusion: float = 0.0
    form: str = static("regression")
    antithetic: bool | None = static(None)
    times: TimeLaw = part("time_law", Uniform())
    weight: Callable[[Float[Array, " B"]], Float[Array, " B"]] | None = part("weight", None)

    def __post_init__(self) -> None:
        """Checks the names and the law of the times."""
        object.__setattr__(self, "times", check_law(self.times))
        for name, value, allowed in (
            ("prediction", self.prediction, get_args(Field)),
            ("form", self.form, ("regression", "energy")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")

    @property
    def _unbounded(self) -> bool:
        return self.prediction in ("velocity", "forward_drift", "score")

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> InterpolationDraws:
        """Draws latent noise, times and, where the batch has no "x0", a standard normal source.

        Example i depends on (key, i) only. Times of unbounded targets are moved into [1e-4, 1 - 1e-4].

        Args:
            key: key of the training step.
            batch: "x1" (B, ...), optionally the source "x0" (B, ...) and "cond".
            memory: unused; part of the objective protocol.
            step: unused likewise.
        """
        x1 = batch["x1"]

        def one(index: Array) -> tuple[Array, Array, Array, Array]:
            for_source, for_latent, for_time, for_network = jax.random.split(jax.random.fold_in(key, index), 4)
            x0, z = (jax.random.normal(k, x1.shape[1:], x1.dtype) for k in (for_source, for_latent))
            return x0, z, self.times.sample(for_time), seed(for_network)

        x0, z, t, seeds = jax.vmap(one)(jnp.arange(x1.shape[0]))
        if self._unbounded:
            t = jnp.clip(t, CUT, 1 - CUT)
        return InterpolationDraws(x0=batch.get("x0", x0), x1=x1, z=z, t=t, cond=batch.get("cond"), seeds=seeds)

    def target(self, draws: InterpolationDraws, z: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """What the network regresses on, for this latent noise."""
        d = draws
        if self.prediction in ("source", "data", "denoiser"):
            return {"source": d.x0, "data": d.x1, "denoiser": z}[self.prediction]
        if self.prediction == "score":
            return self.interpolant.score(d.t, z)
        if self.prediction == "drift":
            return self.interpolant.conditional_drift(d.t, d.x0, d.x1)
        velocity = self.interpolant.conditional_velocity(d.t, d.x0, d.x1, z)
        if self.prediction == "velocity":
            return velocity
        return velocity - jnp.asarray(self.diffusion, z.dtype) * divide(
            z, expand(self.interpolant.coefficients(d.t).g, z)
        )

    def loss(
        self, networks: Callable[..., Array], draws: InterpolationDraws
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The loss of each example.

        Args:
            networks: called as `networks(x, t, cond)`, with `key=` if it has dropout; twice for an antithetic pair.
            draws: from `draw`.

        Returns:
            (B,), and {"mse": mean squared error without the weight, (B,)}.

        Raises:
            ValueError: the network's answer has another shape than the data.
        """
        draws = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1))
        antithetic = self._unbounded if self.antithetic is None else self.antithetic
        axes = tuple(range(1, draws.x1.ndim))
        network, energies, errors = with_keys(networks, draws.seeds), [], []
        for z in (draws.z, -draws.z) if antithetic else (draws.z,):
            x = self.interpolant.interpolate(draws.t, draws.x0, draws.x1, z)
            value, target = network(x, draws.t, draws.cond), self.target(draws, z)
            check_answer(value, target)
            energies.append(jnp.sum(value**2 / 2 - target * value, axis=axes))
            errors.append(jnp.mean((value - target) ** 2, axis=axes))
        mse = jnp.mean(jnp.stack(errors), axis=0)
        loss = mse if self.form == "regression" else jnp.sum(jnp.stack(energies), axis=0)
        return loss if self.weight is None else self.weight(draws.t) * loss, {"mse": mse}
