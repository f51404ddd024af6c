"""The sum of a field and what another adds to it, such as the gradient of a classifier, under every solver."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.fields.guided import not_an_evaluation
from flowjax.fields.wrapper import FieldWrapper, check_convertible
from flowjax.flow import Field, check_field


@fact("field", "added", "a field and what another adds to its predictions", cite="dhariwal2021diffusion")
@pytree
class Added(FieldWrapper):
    """A field whose every prediction is its own plus that of a second field, at the same place.

    With `Gradient` this is classifier guidance under every solver; `flowjax.solvers.Splitting` treats the two by
    different methods instead.

    Args:
        field: the field that is guided.
        added: what is added: `Gradient`, or another field whose predictions are changes of predictions.

    Raises:
        ValueError: one of them is no field, they have different paths, or predictions that are not converted.

    Reference: Dhariwal and Nichol (2105.05233), section 4.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=path)
        >>> pull = fj.fields.Gradient(lambda x, t, cond: -jnp.sum((x - 1) ** 2, -1) / 2, path=path)
        >>> field = fj.fields.Added(flow, added=pull)
        >>> field.score(0.5, jnp.zeros((1, 2))).tolist()  # that of the gradient, (1, 1), and that of -x, (0, 0)
        [[1.0, 1.0]]
    """

    positional = ("field",)

    field: Field = part("field")
    added: Field = part("field")

    def __post_init__(self) -> None:
        """Checks both."""
        super().__post_init__()
        check_field(self.added)
        check_convertible(self, self.field)
        pair: Any = [jax.tree.flatten(field.path) for field in (self.field, self.added)]
        same = pair[0][1] == pair[1][1] and all(
            isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer) or np.array_equal(a, b)
            for a, b in zip(pair[0][0], pair[1][0], strict=True)
        )
        if not same:
            raise ValueError(f"both fields must have one path, got {self.field.path} and {self.added.path}")

    @property
    def stateless(self) -> bool:
        """Whether both are."""
        return self.field.stateless and self.added.stateless

    @property
    def one_evaluation_per_step(self) -> bool:
        """Whether one of them asks for it."""
        return self.field.one_evaluation_per_step or self.added.one_evaluation_per_step

    def init(self, x: Array, times: Any = None) -> Any:
        """Both memories."""
        return self.field.init(x, times), self.added.init(x, times)

    def check(self, times: Any, to: str) -> None:
        """Both must give `to`.

        Raises:
            ValueError: one does not, or "raw" is asked for.
        """
        if to == "raw":
            raise ValueError("Added changes predictions, not the raw network output")
        self.field.check(times, to)
        self.added.check(times, to)

    def report(self, memory: Any) -> Any:
        """The field's."""
        return self.field.report(memory[0])

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The sum; one evaluation, and the network calls of both.

        Raises:
            ValueError: a mean velocity is asked for.
        """
        if extra.get("end") is not None:
            raise ValueError("what is added belongs to one time: no mean velocity up to an end")
        value, own = self.field.evaluate(t, x, cond, memory[0], to=to, **extra)
        more, other = self.added.evaluate(t, x, cond, memory[1], to=to)
        return value + more.astype(value.dtype), (own, not_an_evaluation(other))
