"""The base of fields around a field: what a class does not change is the inner field's."""

from typing import Any

from jaxtyping import Array

from flowjax.flow import Field, check_determined, check_field


class _Forwarded:
    """The inner field's attribute. Unlike a property it gives way to one that the instance stores itself."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(instance.field, self.name)


class FieldWrapper(Field):
    """A field around a field. Only `evaluate` is left to write; what else it changes, it overrides by name.

    Attributes:
        field: the inner field.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax._pytree import pytree
        >>> @pytree
        ... class Slower(fj.fields.FieldWrapper):
        ...     field: fj.Field
        ...     def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        ...         value, memory = self.field.evaluate(t, x, cond, memory, to=to, **extra)
        ...         return value / 2, memory
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear(), null=10)
        >>> slow = Slower(field=flow)
        >>> slow.null, slow.velocity(0.5, jnp.ones((1, 2))).tolist()
        (10, [[-0.5, -0.5]])
    """

    field: Field

    path: Any = _Forwarded()
    null: Any = _Forwarded()
    stateless: Any = _Forwarded()
    one_evaluation_per_step: Any = _Forwarded()
    convertible: Any = _Forwarded()

    def __post_init__(self) -> None:
        """Checks the inner field.

        Raises:
            ValueError: it is none.
        """
        check_field(self.field)

    def init(self, x: Array, times: Any = None) -> Any:
        """The field's memory."""
        return self.field.init(x, times)

    def check(self, times: Any, to: str) -> None:
        """The field must give `to` at these times."""
        self.field.check(times, to)

    def report(self, memory: Any) -> Any:
        """The field's."""
        return self.field.report(memory)


class DataWrapper(FieldWrapper):
    """A field that changes the data prediction, and with it all others.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.fields.Thresholded, DataWrapper)
        True
    """

    def __post_init__(self) -> None:
        """Checks the inner field.

        Raises:
            ValueError: it is none, or its predictions cannot be converted.
        """
        super().__post_init__()
        check_convertible(self, self.field)

    def check(self, times: Any, to: str) -> None:
        """The data prediction must be known, and determine what is asked for.

        Raises:
            ValueError: at a time where it is not, or "raw" is asked for.
        """
        if to == "raw":
            raise ValueError(f"{type(self).__name__} works on the data prediction, not on the raw network output")
        self.field.check(times, "data")
        for t in times:
            check_determined(self.path, "data", to, float(t))


def check_convertible(what: Any, field: Field) -> None:
    """Raises ValueError unless the predictions of the field, which `what` converts, belong together."""
    if not field.convertible:
        raise ValueError(
            f"{type(what).__name__} makes one prediction from another, which {type(field).__name__} does not allow: it "
            "goes around fields on a Gaussian path, and DriftPlusScore around the whole"
        )
