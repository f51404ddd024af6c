"""The direction that a matrix shrinks most, with a derivative that stays finite."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def null_vector(
    matrix: Float[Array, "M n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, "n n"]]:
    """Right singular vector z of the smallest singular value, all n singular values, largest first, all n vectors.

    The sign of z is arbitrary. Fewer rows than n are filled up with zeros, which changes nothing. The derivative is
    the implicit one of the eigenvector, dz = (s_n^2 - A^T A)^+ (dA^T A + A^T dA) z: unlike that of a whole
    decomposition it needs only the gap to the smallest singular value. Along directions without a gap (to rounding)
    the derivative is set to zero. The singular values and all the vectors, as rows, are diagnostics and count as
    constants.
    """
    return _decompose(matrix)


def _decompose(matrix):
    rows, size = matrix.shape
    padded = jnp.pad(matrix, ((0, max(size - rows, 0)), (0, 0)))
    _, values, right = jnp.linalg.svd(padded, full_matrices=False)
    return right[-1], values, right


@null_vector.defjvp
def _null_vector_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    vector, values, right = _decompose(matrix)
    squares = values**2
    gap = squares[-1] - squares
    solid = -gap > 8 * jnp.finfo(matrix.dtype).eps * squares[0]
    inverse = jnp.where(solid, 1 / jnp.where(solid, gap, 1), 0)
    pushed = change.T @ (matrix @ vector) + matrix.T @ (change @ vector)
    return (vector, values, right), (
        right.T @ (inverse * (right @ pushed)),
        jnp.zeros_like(values),
        jnp.zeros_like(right),
    )


def present(points: Float[Array, "N ..."], mask: Float[Array, " N"] | None = None) -> Float[Array, " N"]:
    """1 for rows that the mask keeps and that are finite, else 0."""
    axes = tuple(range(1, points.ndim))
    good = jnp.isfinite(points).all(axes).astype(points.dtype)
    # A NaN in a mask keeps nothing: unlike `mask != 0`, this is false for it.
    return good if mask is None else good * (jnp.abs(mask) > 0).astype(points.dtype)
