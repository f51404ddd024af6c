"""The recipe of a network that answers an example: with a class, or with numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, r2_score, recall_score

from flowjax import _checks, specs
from flowjax.conditions import resized
from flowjax.data import Source
from flowjax.recipe.base import Base, traced
from flowjax.recipe.request import Request
from flowjax.training.mesh import fill, make_mesh, over, put_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionRecipe(Base):
    """How to rebuild a trained classifier or regression and what it is measured on; further attributes as in `Base`.

    Attributes:
        answers: "classes" (logits, one number for each class) or "values" (as the field "target" of the data has them).
        answer: Shape of one answer.
        held_out: Part of the data that training has not seen, in (0, 1).
        seed: Of the choice of this part.
        path: Of a classifier of noisy examples, which is asked at a time t about states of this path; None asks about
            the examples alone.

    Example:
        >>> from flax import nnx
        >>> encoder = {"name": "image", "options": {"image_shape": (8, 8, 1), "dim": 16}}
        >>> network = {"name": "readout", "options": {"encoder": encoder, "outputs": 10}}
        >>> scale = {"shift": 8.0, "scale": 8.0, "low": 0.0, "high": 16.0}
        >>> digits = {"data": {"name": "digits", "options": {}}, "shape": (8, 8, 1), "num_classes": 10, **scale}
        >>> recipe = RegressionRecipe(network=network, answers="classes", answer=(10,), held_out=0.1, **digits)
        >>> recipe.check_networks({"network": nnx.eval_shape(lambda: recipe.build_network(nnx.Rngs(0)))})
        >>> recipe.kind, recipe.label
        ('regression', 'network')
    """

    answers: str
    answer: tuple[int, ...]
    held_out: float
    seed: int = 0
    path: Mapping[str, Any] | None = None
    kind: str = "regression"

    label: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        """Checks names and numbers.

        Raises:
            ValueError: See `Base`; classes without their number, values of noisy examples.
        """
        super().__post_init__()
        _checks.choose("answers", self.answers, ("classes", "values"))
        _checks.sizes(answer=self.answer)
        _checks.real("(0, 1)", held_out=self.held_out)
        _checks.whole(_checks.SEED, seed=self.seed)
        if self.answers == "classes" and self.answer != (self.num_classes,):
            raise ValueError(f"answers of {self.num_classes} classes have as many numbers, got answer={self.answer}")
        if self.path is not None:
            specs.build("path", self.path)
            if self.answers == "values":
                raise ValueError("a path is for classes of noisy examples, and these answers are values")

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """A call with examples must give answers."""
        x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, *self.shape), (1,)))
        found = traced(shapes["network"], x, *self._beside(t))
        if getattr(found, "shape", None) != (1, *self.answer):
            raise ValueError(f"the network answers {getattr(found, 'shape', found)}, not (1, {self._answer_shape()})")

    def _beside(self, t: Any) -> tuple[Any, ...]:
        """What the network is asked with beside examples."""
        if self.path is not None:
            return (t,)
        return () if self.answers == "classes" else (t, None)

    def _answer_shape(self) -> str:
        return ", ".join(map(str, self.answer))

    def parts(self, source: Source) -> tuple[Source, Source]:
        """The data that training sees, and the part that is held out."""
        return source.split(self.held_out, self.seed)

    def predict(
        self, networks: Mapping[str, Any], x: np.ndarray, *, batch: int = 200, mesh: Mesh | None = None
    ) -> Float[np.ndarray, "N ..."]:
        """The answers to examples: logits (N, classes), or values (N, ...).

        Args:
            networks: From `load_run`.
            x: Examples in the data's own scale, (N, ...).
            batch: Examples at once, rounded up to a multiple of the devices.
            mesh: Devices to use; all by default.

        Raises:
            ValueError: Examples of another shape.
        """
        if tuple(x.shape[1:]) != tuple(self.shape):
            raise ValueError(f"expected examples (N, {', '.join(map(str, self.shape))}), got {x.shape}")
        mesh = make_mesh() if mesh is None else mesh
        batch = fill(batch, mesh)
        answer = jax.jit(lambda network, x: network(x, *self._beside(jnp.ones(len(x), x.dtype))))
        found = []
        for first in range(0, len(x), batch):
            rows = (np.asarray(x[first : first + batch], np.float32) - self.shift) / self.scale
            placed = put_batch(resized(rows.astype(np.float32), 0, batch), mesh)
            with over(mesh):
                found.append(multihost_utils.process_allgather(answer(networks["network"], placed), tiled=True))
        return np.concatenate(found)[: len(x)]

    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Errors on the part of the data that is held out, on `request.num` examples of it at most.

        Classes: "accuracy", "accuracy_0", ... of each class that occurs, "cross_entropy". Values: "mse", "mae", and
        "r2", the part of the variance that is explained (the mean over the numbers of an answer).

        Args:
            networks: From `load_run`.
            source: All of the data.
            request: How many examples.
            judge: Not used.
            mesh: Devices to use; all by default.

        Raises:
            ValueError: The answers are not finite.
        """
        held = self.parts(source)[1].take(request.num, request.seed)
        answers = self.predict(networks, np.asarray(held.x), batch=request.batch, mesh=mesh)
        if not np.isfinite(answers).all():
            return {"bad_samples": int((~np.isfinite(answers.reshape(len(answers), -1)).all(1)).sum())}
        numbers: dict[str, Any] = {"examples": len(answers)}
        if self.answers == "values":
            made, real = (np.asarray(a).reshape(len(answers), -1) for a in (answers, held.fields["target"]))
            numbers |= {"mse": mean_squared_error(real, made), "mae": mean_absolute_error(real, made)}
            return numbers | {"r2": r2_score(real, made)} if len(real) > 1 else numbers
        assert held.cond is not None
        chosen, labels = answers.argmax(-1), np.arange(self.answer[0])
        p = np.asarray(jax.nn.softmax(jnp.asarray(answers), axis=-1), np.float64)
        numbers["accuracy"] = float(accuracy_score(held.cond, chosen))
        numbers["cross_entropy"] = float(log_loss(held.cond, p / p.sum(-1, keepdims=True), labels=labels))
        present = np.unique(held.cond)
        recalls = recall_score(held.cond, chosen, labels=present, average=None)
        return numbers | {f"accuracy_{c}": float(r) for c, r in zip(present, np.atleast_1d(recalls))}
