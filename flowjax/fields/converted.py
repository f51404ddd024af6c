"""A network trained on one path, sampled along another."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.wrapper import FieldWrapper, check_convertible
from flowjax.flow import Field, check_determined
from flowjax.paths.base import GaussianPath, check_time_and_state, expand, namespace


@fact("field", "converted", "a network of one path, sampled along another", cite="kingma2021variational")
@pytree
class Converted(FieldWrapper):
    """A field along another path than its own.

    Two Gaussian paths a, b hold the same mixtures of data and noise, scaled: at equal signal-to-noise ratio,
    lam_a(u) = lam_b(t), the state x of b is c x on a with c^2 = (alpha_a^2 + sigma_a^2) / (alpha_b^2 + sigma_b^2), and
    the data and noise predictions are the same. Where b has more noise or more data than a ever has, the nearest time
    of a is taken, and the prediction is completed with the state of b.

    Args:
        field: a field on the path its network was trained on.
        path: the path to sample along. Times passed to the field are those of this path, scalar or (B,).

    Raises:
        ValueError: a path that is not Gaussian, or a field whose predictions cannot be converted.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> trained = fj.Flow(lambda x, t, cond: x, path=fj.paths.VP(), prediction="noise")
        >>> field = fj.fields.Converted(trained, path=fj.paths.Linear())
        >>> field.velocity(0.5, jnp.ones((2, 3))).shape
        (2, 3)
    """

    positional = ("field",)

    field: Field = part("field")
    path: GaussianPath = part("path")

    def __post_init__(self) -> None:
        """Checks the field and the path."""
        super().__post_init__()
        check_convertible(self, self.field)
        if not isinstance(self.path, GaussianPath):
            raise ValueError(f"path must be one of flowjax.paths, such as flowjax.paths.Linear(), got {self.path!r}")

    def init(self, x: Array, times: Any = None) -> Any:
        """Memory of the field, for its own times."""
        return self.field.init(x, None if times is None else self.time(times))

    def time(self, t: Any) -> Any:
        """The time of the field's own path with the signal-to-noise ratio that this path has at t."""
        own = self.field.path
        xp = namespace(t)
        t = xp.asarray(t, dtype=getattr(t, "dtype", float))
        lows, highs = (float(own.lam(np.float64(end))) for end in (0.0, 1.0))
        lam = self.path.lam(t)
        inside = own.time(xp.clip(lam, max(lows, -80.0), min(highs, 80.0)))
        return xp.where(lam <= lows, 0.0, xp.where(lam >= highs, 1.0, xp.clip(inside, 0.0, 1.0)))

    def check(self, times: Any, to: str) -> None:
        """The field must determine the pair of data and noise at its own times, and that must determine `to`.

        Raises:
            ValueError: it does not.
        """
        self.field.check([float(self.time(np.float64(t))) for t in times], "raw" if to == "raw" else "v")
        for t in times if to != "raw" else ():
            check_determined(self.path, "v", to, float(t))

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The field's prediction at the matching time and state, on this path."""
        t = jnp.asarray(check_time_and_state(t, x))
        u, own = self.time(t), self.field.path

        def norm(path: GaussianPath, t: Any) -> Array:
            return jnp.sqrt(path.alpha(t) ** 2 + path.sigma(t) ** 2)

        at = expand(norm(own, u) / norm(self.path, t), x) * x
        if extra.get("end") is not None:
            extra["end"] = self.time(jnp.asarray(check_time_and_state(extra["end"], x)))
        value, memory = self.field.evaluate(u, at, cond, memory, to="raw" if to == "raw" else "v", **extra)
        if to == "raw":
            return value, memory
        data, noise = (own.convert(value, given="v", to=kind, t=u, x=at) for kind in ("data", "noise"))
        return self.path.convert(self.path.target("v", t, noise, data), given="v", to=to, t=t, x=x), memory
