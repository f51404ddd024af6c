"""Classifier guidance by its name: a field and the gradient of a classifier's log probability."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from flowjax.facts import fact
from flowjax.fields.added import Added
from flowjax.fields.gradient import Gradient
from flowjax.flow import Field


@fact(
    "field",
    "classifier",
    "a field with the gradient of a classifier of noisy examples",
    cite="dhariwal2021diffusion",
    parts={"field": "field", "of": "density", "scale": "scale"},
)
def classifier(field: Field, of: Callable[..., Float[Array, " batch"]], scale: Any = 1.0) -> Added:
    """`Added(field, added=Gradient(of, path=field.path, scale=scale))`, so that configs and command lines can say it.

    Args:
        field: The field that is guided; guidance by a pair may be in it.
        of: log p(label | x_t = x), (B,), called as `of(x, t, cond)`; in specs `run(workdir=FOLDER)`, a run of
            `config.objective="classification(noise_path=...)"`.
        scale: Strength, as for `CFG`; 1 is Bayes' rule.

    Raises:
        ValueError: See `Added` and `Gradient`.

    Reference: Dhariwal and Nichol (2105.05233), section 4.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = classifier(flow, lambda x, t, cond: -jnp.sum((x - 1) ** 2, -1) / 2, scale=2.0)
        >>> field.score(0.5, jnp.zeros((1, 2))).tolist()
        [[2.0, 2.0]]
    """
    return Added(field, added=Gradient(of, path=field.path, scale=scale))
