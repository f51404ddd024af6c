"""A small class-conditional problem that trains in milliseconds."""

import types

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax.models import MLP
from flowjax.objectives import FlowMatching
from flowjax.paths import Linear
from flowjax.training import compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.ema import Warmup


@pytest.fixture
def problem():
    """Builds (state, run) on a mesh; `run(state, steps)` trains from the step the state is at.

    Options are those of `make_step`, or the sizes of the mesh.
    """

    def build(devices=1, objective=None, accumulate=1, averages=None, optimizer=None, **sizes):
        mesh = make_mesh(devices=jax.devices()[:devices], **sizes)
        objective = FlowMatching(path=Linear(), label_dropout=0.1, null=3) if objective is None else objective
        averages = {"average": Warmup(decay=0.9)} | (averages or {})
        optimizer = optimizer or optax.adamw(1e-2)
        rng = np.random.default_rng(0)
        x, cond = rng.normal(size=(6, 64, 2)).astype(np.float32), rng.integers(0, 3, (6, 64)).astype(np.int32)

        def network():
            return MLP(2, width=32, depth=2, num_classes=3, rngs=nnx.Rngs(0))

        state = create_state(network, optimizer, mesh, averages=averages)
        key = jax.random.key(1)
        batch = put_batch({"x1": x[0], "cond": cond[0]}, mesh)
        step = make_step(optimizer, averages, accumulate=accumulate)
        step = compile_step(step, state, objective, batch, key)

        def run(state, steps, spoil=()):
            """Steps in `spoil` see a NaN in their data."""
            for _ in range(steps):
                done = int(state.step)
                x1 = x[done % 6].copy()
                if done in spoil:
                    x1[3] = np.nan
                state, metrics = step(state, objective, put_batch({"x1": x1, "cond": cond[done % 6]}, mesh), key)
            return state, metrics

        return types.SimpleNamespace(state=state, run=run, program=step.as_text(), objective=objective, batch=batch)

    return build
