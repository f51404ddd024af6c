"""Derivatives of samples by the numbers of rows, against differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import LINEAR, mixture

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.calibration import forms
from flowjax.calibration.derivatives import derivatives, numbers


@pytree
class Remembering(fj.fields.FieldWrapper):
    """Adds a part of the value before."""

    field: fj.Field
    stateless = False

    def init(self, x, times=None):
        return self.field.init(x, times), jnp.zeros_like(x)

    def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        value, inner = self.field.evaluate(t, x, cond, memory[0], to=to, **extra)
        value = value + 0.3 * memory[1]
        return value, (inner, value)


@pytest.mark.parametrize("kind", ["rows", "memory", "parallel"])
def test_derivatives_are_those_of_differences(pools, kind, x64):
    """From step to step, of a field with a memory as a whole, and of parallel points."""
    flow, x = mixture(LINEAR), jnp.asarray(pools[0].x[:3], jnp.float64)
    rows = fj.solvers.rows_of(fj.solvers.AdamsBashforth(order=3).bind(LINEAR, fj.times.uniform(4, 0.1, 0.9)))
    if kind == "parallel":
        rows = forms.parallel_starts(LINEAR, 3, 2, 0.1, 0.9)["velocity at 2 points on uniform"]
    elif kind == "memory":
        flow = Remembering(field=flow)
    final, slopes = derivatives(flow, rows, x, None)
    sampled = jax.jit(lambda rows: forms.form_of(rows).sampled(flow, rows, x, None))
    np.testing.assert_allclose(final, sampled(rows), rtol=1e-12)
    for name, part in numbers(rows).items():
        for place in np.ndindex(part.shape):
            if name == "times" and place in ((0,), (len(part) - 1,)):
                continue
            if name == "weights" and kind != "parallel" and place[1] > place[0]:
                continue
            shift = np.zeros_like(part)
            shift[place] = 1e-6
            ends = [sampled(dataclasses.replace(rows, **{name: part + s * shift})) for s in (1, -1)]
            np.testing.assert_allclose(slopes[name][place], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)
