"""Noises of a mixture with the fine solution that rows learn from."""

import jax
import numpy as np

import flowjax as fj
from flowjax.calibration import least_squares
from flowjax.calibration.reference import reference

LINEAR = fj.paths.Linear()


def mixture(path):
    means = 1.2 * np.random.default_rng(0).normal(size=(3, 4))
    law = fj.oracles.Mixture(weights=np.array([0.3, 0.25, 0.45]), means=means, stds=0.3, path=path)
    return fj.Flow(law.network("velocity"), path=path, prediction="velocity")


def pool(flow, seed, num, start=0.0, end=1.0, **options):
    x = flow.path.start(fj.noise(jax.random.key(seed), (num, 4)), start)
    target = reference(flow, x, fj.times.uniform(4, start, end), steps=200)[-1]
    return least_squares.Pool(field=flow, x=x, target=target, **options)


def euler(steps=4):
    return fj.solvers.rows_of(fj.solvers.Euler().bind(LINEAR, fj.times.uniform(steps)))
