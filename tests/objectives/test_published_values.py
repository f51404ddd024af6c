"""Losses with a fixed network and fixed noise, as the published programs compute them.

Recorded in float64 by calling the loss functions of the named commits on the arrays below: `Transport.training_losses`
of willisma/SiT at 947f95b, `loss_per_sample_*` of malbergo/stochastic-interpolants at c9bc956, and the target and state
of the flow matchers of atong01/conditional-flow-matching at cacd4dc under a mean squared error.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.objectives import Draws, FlowMatching, Interpolation, InterpolationDraws, SiTWeight
from flowjax.paths import VP, Interpolant, Linear, Trig

I = np.arange(8.0).reshape(4, 2)  # noqa: E741
X0, X1, Z = (jnp.asarray(a, jnp.float32) for a in (np.sin(1 + I), np.cos(2 * I) + 0.5, np.sin(3 * I - 1)))
T = jnp.array([0.125, 0.375, 0.625, 0.875])


def network(x, t, cond=None):
    return 0.5 * x + t[:, None]


def minus(x, t, cond=None):
    return -network(x, t)


SIT = {
    ("Linear", "velocity", "none"): (0.91855061, 1.8631064, 0.42535755, 1.5632077),
    ("Linear", "noise", "none"): (0.10507641, 0.71442158, 1.4257786, 0.38426308),
    ("Linear", "noise", "velocity"): (6.7248905, 5.0803312, 3.6499932, 0.50189463),
    ("Linear", "noise", "likelihood"): (0.96069864, 3.0481987, 6.083322, 3.5132624),
    ("Linear", "score", "none"): (1.8583148, 0.19869644, 0.28702506, 1.0082657),
    ("Linear", "score", "velocity"): (118.93215, 1.4129525, 0.73478415, 1.3169185),
    ("Linear", "score", "likelihood"): (16.990307, 0.8477715, 1.2246402, 9.2184295),
    ("Trig", "velocity", "none"): (1.2025964, 2.4637372, 0.61425712, 5.8300744),
    ("Trig", "noise", "velocity"): (4.3384233, 6.2258624, 4.6689361, 1.2470769),
    ("Trig", "noise", "likelihood"): (0.54938125, 2.6483308, 4.4484168, 3.9912742),
    ("Trig", "score", "none"): (2.2346744, 0.17688821, 0.23114677, 1.2378096),
    ("Trig", "score", "likelihood"): (18.345285, 0.60149693, 0.78599967, 10.161646),
    ("VP", "velocity", "none"): (0.20250148, 0.96668098, 1.1955882, 7.346284),
    ("VP", "noise", "none"): (0.093250824, 0.41138726, 1.0282565, 0.53511604),
    ("VP", "noise", "likelihood"): (0.81689542, 2.6295548, 5.1005217, 4.4774771),
    ("VP", "score", "velocity"): (160.58685, 15.161364, 4.7104404, 21.661783),
}


@pytest.mark.parametrize(("case", "published"), SIT.items(), ids=lambda case: "-".join(map(str, case)))
def test_sit(case, published):
    name, prediction, weighting = case
    path = {"Linear": Linear(), "Trig": Trig(), "VP": VP()}[name]
    weight = None
    if prediction != "velocity":
        weight = SiTWeight(path=path, weighting=weighting, prediction=prediction)
    objective = FlowMatching(path=path, prediction=prediction, weight=weight)
    loss, _ = objective.loss(network, Draws(x0=X0, x1=X1, t=T))
    np.testing.assert_allclose(loss, published, rtol=2e-5)


LINEAR, TRIG = Interpolant(), Interpolant(form="trig", gamma="quadratic")
ENCODER = Interpolant(form="encoding_decoding")
ONE_LINEAR, ONE_TRIG = (Interpolant(form="one_sided", path=path) for path in (Linear(), Trig()))
INTERPOLANTS = [
    (LINEAR, "velocity", None, (0.18846661, -1.4017044, -0.51417575, 3.2375084)),
    (LINEAR, "score", None, (2.2001548, 2.3319013, 2.6242532, 5.5450423)),
    (LINEAR, "denoiser", None, (0.57048346, 0.71806384, 0.68468265, 1.7923492)),
    (LINEAR, "drift", None, (0.59550781, -1.1734159, -0.071370795, 1.3959871)),
    (TRIG, "velocity", None, (-1.7205518, -1.7738545, -0.99273167, 9.0655965)),
    (TRIG, "score", None, (2.334923, 2.2917457, 2.4380586, 5.9448392)),
    (TRIG, "denoiser", None, (0.43266588, 0.51301738, 0.34809067, 1.8073684)),
    (TRIG, "drift", None, (-0.69920067, -1.1451757, -0.39469986, 4.478371)),
    (ENCODER, "velocity", None, (3.8891548, -3.8361153, 4.7804416, -7.898117)),
    (ENCODER, "score", None, (2.0407349, 2.4947466, 3.1261034, 5.1804281)),
    (ENCODER, "denoiser", None, (0.42879897, 1.0322902, 1.3374819, 1.4690389)),
    (ENCODER, "drift", None, (2.2178929, -0.97920386, 1.1422935, -4.1446911)),
    (ONE_LINEAR, "velocity", False, (0.36104127, -0.63782052, -0.43896349, 1.2651435)),
    (ONE_LINEAR, "score", None, (1.893498, 1.1913091, 1.8434577, 4.8868824)),
    (ONE_LINEAR, "denoiser", None, (1.285661, -0.09578569, -0.4000952, 4.060192)),
    (ONE_TRIG, "velocity", False, (-0.91609005, -0.88481394, -0.60771872, 4.7666251)),
    (ONE_TRIG, "score", None, (1.9953645, 1.4148926, 1.9054476, 5.1866526)),
    (ONE_TRIG, "denoiser", None, (1.5036877, -0.11247509, -0.38817068, 4.4210112)),
    (Interpolant(form="mirror", gamma="quadratic"), "score", False, (9.3345789, -2.5264225, -2.9992108, 22.822711)),
]


@pytest.mark.parametrize(("interpolant", "prediction", "antithetic", "published"), INTERPOLANTS)
def test_interpolants(interpolant, prediction, antithetic, published):
    """The published denoiser is the negative of ours; its one-sided and mirror noise is called x0."""
    z = X0 if interpolant.form in ("one_sided", "mirror") else Z
    objective = Interpolation(interpolant=interpolant, prediction=prediction, form="energy", antithetic=antithetic)
    ours = minus if prediction == "denoiser" else network
    loss, _ = objective.loss(ours, InterpolationDraws(x0=X0, x1=X1, z=z, t=T))
    np.testing.assert_allclose(loss, published, rtol=2e-5, atol=2e-6)


def test_conditional_flow_matching():
    """I-CFM with sigma = 0.1, the bridge of SB-CFM with 0.5, Lipman's path with sigma_min = 0.1."""
    draws = InterpolationDraws(x0=X0, x1=X1, z=Z, t=T)
    for interpolant, published in (
        (Interpolant(gamma="constant", scale=0.1**2), (0.98502002, 1.7433592, 0.49177396, 1.5977017)),
        (Interpolant(scale=0.5**2), (0.47333196, 1.8828753, 0.80720267, 2.3537243)),
    ):
        loss, _ = Interpolation(interpolant=interpolant, antithetic=False).loss(network, draws)
        np.testing.assert_allclose(loss, published, rtol=2e-5)
    loss, _ = FlowMatching(path=Linear(sigma_min=0.1)).loss(network, Draws(x0=X0, x1=X1, t=T))
    np.testing.assert_allclose(loss, (0.81556538, 1.746237, 0.3878903, 1.4479786), rtol=2e-5)
