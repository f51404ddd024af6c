"""Steps along policies: one evaluation gives the velocities of a whole step."""

from flowjax._pytree import pytree
from flowjax.facts import fact
from flowjax.solvers.jump import Jump


@fact("solver", "policy", "one evaluation over each step, for networks of policies", cite="chen2025piflow")
@pytree
class Policy(Jump):
    """Follows the policy that a network answers with at the beginning of each step to the end of the step.

    What `Jump` does for average velocities: the field, `flowjax.fields.Curved`, answers `end=` with the mean velocity
    of its policy, so that momenta are integrated in closed form and Gaussian mixtures in small steps without the
    network. The grid is that of training; policies are trained for two steps or more.

    References:
        pi-Flow, arXiv:2510.14974. ArcFlow, arXiv:2602.09014.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> curve = lambda x, t, cond: jnp.stack([x[:, 0] * 0 + c for c in (1, 1, 0, 0, 10 * jnp.log(4))], axis=1)
        >>> flow = fj.Flow(curve, path=fj.paths.Linear())
        >>> field = fj.fields.Curved(flow, policy=fj.policies.Momentum(components=2))
        >>> solution = fj.solve(field, fj.solvers.Policy(), jnp.zeros((1, 1)), fj.times.uniform(1))
        >>> round(float(solution.x[0, 0]), 3), int(solution.evaluations)  # (1 + 3 / log 4) / 2
        (1.582, 1)
    """
