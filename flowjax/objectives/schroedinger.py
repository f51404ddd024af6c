"""The Schroedinger bridge by optimising the interpolant (experimental: the paper gives no numerical results)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.models.attention import require_jvp
from flowjax.objectives.base import frozen, seed, with_keys
from flowjax.objectives.interpolation import CUT, InterpolationDraws
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths.base import check_time_and_state, expand


@fact(
    "objective",
    "schroedinger_bridge",
    "Schroedinger bridge by optimising the interpolant (experimental)",
    cite="albergo2023stochastic",
    tasks=("generation",),
)
@pytree
class SchroedingerBridge:
    """Both players of the saddle-point problem.

        max over I, min over u of  int_0^1 E[ |u(t, x_t)|^2 / 2 - (d_t I + (g' - eps / g) z) . u(t, x_t) ] dt,

    x_t = I(t, x0, x1) + g(t) z with g = sqrt(2 eps t (1 - t)) and I = (1 - t) x0 + t x1 + t (1 - t) N(t, x0, x1): the
    ends are built in. For fixed I the minimiser is the forward drift u = b + eps s of dx = u dt + sqrt(2 eps) dW; at
    the saddle point u is the drift of the bridge and x_t has its law. eps -> 0 is optimal transport.

    The two networks descend at once on the sum of two losses with disjoint gradients: u on the value above, N on its
    negative.

    `networks` is {"velocity": u, "interpolant": N}: u(x, t, cond), and N(x, t, cond) on x = (x0, x1) concatenated along
    the last axis, with values of x1's shape.

    Args:
        diffusion: eps, positive: the bridge's reference is sqrt(2 eps) dW.
        times: distribution of training times, moved into [1e-4, 1 - 1e-4].

    Raises:
        ValueError: eps is not positive.

    Reference: Albergo, Boffi and Vanden-Eijnden (2303.08797), section 3.4, theorem 5.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.SchroedingerBridge(diffusion=0.5)
        >>> draws = objective.draw(jax.random.key(0), {"x0": jnp.zeros((4, 2)), "x1": jnp.ones((4, 2))})
        >>> networks = {"velocity": lambda x, t, cond: x, "interpolant": lambda x, t, cond: x[:, :2]}
        >>> jax.jit(lambda draws: objective.loss(networks, draws))(draws)[0].shape
        (4,)
    """

    diffusion: float
    times: TimeLaw = part("time_law", Uniform())

    labels = ("velocity", "interpolant")  # of the networks; the first is what a flow is sampled by
    prediction = "forward_drift"

    def __post_init__(self) -> None:
        """Checks eps and the law of the times."""
        object.__setattr__(self, "times", check_law(self.times))
        if isinstance(self.diffusion, int | float) and not self.diffusion > 0:
            raise ValueError(f"diffusion must be positive, got {self.diffusion}")

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> InterpolationDraws:
        """Draws times and latent noise; the source is batch["x0"] or else standard normal."""
        x1 = batch["x1"]

        def one(index: Array) -> tuple[Array, Array, Array, Array]:
            for_source, for_latent, for_time, for_network = jax.random.split(jax.random.fold_in(key, index), 4)
            x0, z = (jax.random.normal(k, x1.shape[1:], x1.dtype) for k in (for_source, for_latent))
            return x0, z, self.times.sample(for_time), seed(for_network)

        x0, z, t, seeds = jax.vmap(one)(jnp.arange(x1.shape[0]))
        t = jnp.clip(t, CUT, 1 - CUT)
        return InterpolationDraws(x0=batch.get("x0", x0), x1=x1, z=z, t=t, cond=batch.get("cond"), seeds=seeds)

    def interpolate(
        self, network: Callable[..., Array], t: Float[Array, " B"], x0: Array, x1: Array, cond: Any = None
    ) -> Float[Array, "B ..."]:
        """I(t, x0, x1) = (1 - t) x0 + t x1 + t (1 - t) N."""
        wide = expand(t, x1)
        bent = network(jnp.concatenate([x0, x1], axis=-1), t, cond)
        return (1 - wide) * x0 + wide * x1 + wide * (1 - wide) * bent

    def loss(
        self, networks: Mapping[str, Callable[..., Array]], draws: InterpolationDraws
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The loss of u plus that of the interpolant, averaged over the pair of opposite z.

        Returns:
            (B,), and {"value": the objective of the saddle point, (B,)}.

        Raises:
            ValueError: the interpolant's network has no forward derivative.
        """
        d, eps = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1)), self.diffusion
        g = jnp.sqrt(2 * eps * d.t * (1 - d.t))
        forward = expand(-2 * eps * d.t / g, d.z)  # g' - eps / g

        def value(drift: Callable[..., Array], bend: Callable[..., Array]) -> Array:
            drift, bend = with_keys(drift, d.seeds), with_keys(bend, d.seeds)
            base, slope = jax.jvp(
                lambda t: self.interpolate(bend, t, d.x0, d.x1, d.cond), (d.t,), (jnp.ones_like(d.t),)
            )
            total = jnp.zeros_like(d.t)
            for z in (d.z, -d.z):
                u = drift(base + expand(g, z) * z, d.t, d.cond)
                total += jnp.sum(u**2 / 2 - (slope + forward * z) * u, axis=tuple(range(1, u.ndim))) / 2
            return total

        u, bend = networks["velocity"], networks["interpolant"]
        require_jvp(bend)
        own = value(u, frozen(bend))  # each loss moves one network only
        return own - value(frozen(u), bend), {"value": own}
