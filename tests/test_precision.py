"""A float64 state gets float64 times, norms and coefficients everywhere; lower ones get at least float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import two_gaussians

import flowjax as fj
from flowjax.calibration import ems, schedules
from flowjax.fields import Converted, DriftPlusScore, Gradient, InterpolantFlow, Thresholded
from flowjax.guidance import APG, CFG, RAAG, CFGZeroStar, Rescaled
from flowjax.models import attention, embeddings, layers, unet
from flowjax.objectives import FlowMatching, Interpolation, SchroedingerBridge, TeacherRegression
from flowjax.oracles import Gaussian, Mixture
from flowjax.paths import VP, Interpolant, Linear

pytestmark = pytest.mark.usefixtures("x64")
DTYPES = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16]
RNG = np.random.default_rng(0)
C, U = RNG.normal(size=(2, 5, 6))


class Seen:
    """A network that notes the types of the times it gets."""

    def __init__(self):
        self.dtypes = []

    def __call__(self, x, t, cond=None, end=None):
        self.dtypes += [a.dtype for a in (t, end) if a is not None]
        return x


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_networks_get_times_in_the_precision_of_the_state(dtype):
    x, seen = jnp.ones((3, 2), dtype), Seen()
    flow = fj.Flow(seen, path=Linear(), null=0.0)
    bridge = InterpolantFlow(seen, path=Interpolant(), second=seen)
    fields = [flow, Converted(flow, path=VP()), Thresholded(flow), fj.guide(flow, CFG(scale=2.0))]
    for t in (0.4, np.float64(0.4), jnp.float32(0.4), jnp.full(3, 0.4)):
        for field in fields:
            value = field.velocity(t, x, jnp.zeros(3), end=0.7)
            assert value.dtype == dtype
        for field in (bridge, DriftPlusScore(bridge, diffusion=0.1), DriftPlusScore(flow, diffusion=0.1)):
            assert field.velocity(t, x).dtype == dtype
        assert bridge.score(t, x).dtype == dtype
        pull = Gradient(lambda x, t, cond: seen(x, t)[:, 0], path=Linear())
        assert pull.velocity(t, x).dtype == dtype
    assert set(seen.dtypes) == {jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)}


@pytest.mark.parametrize("path", [Linear(), VP()], ids=["linear", "vp"])
def test_coefficients_for_a_rough_time_and_a_fine_state(path):
    """The time is what it is; what is computed from it is in the precision of the state."""
    t, exact = jnp.float32(0.3), float(np.float32(0.3))
    x0, x1 = jnp.asarray(C), jnp.asarray(U)
    for found, expected in (
        (path.interpolate(t, x0, x1), path.interpolate(exact, C, U)),
        (path.conditional_velocity(t, x0, x1), path.conditional_velocity(exact, C, U)),
        (path.target("v", t, x0, x1), path.target("v", exact, C, U)),
        (path.start(x0, t), path.start(C, exact)),
        (
            path.convert(x0, given="noise", to="velocity", t=t, x=x1),
            path.convert(C, given="noise", to="velocity", t=exact, x=U),
        ),
        (Mixture.default(path, dim=2).data(t, x0[:, :2]), Mixture.default(path, dim=2).data(exact, x0[:, :2])),
        (Interpolant(form="trig").score(t, x0), Interpolant(form="trig").score(exact, C)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def combine(rule):
    """As in a compiled loop: the state keeps its types."""
    c, u = jnp.asarray(C), jnp.asarray(U)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, _: rule.combine(0.5, c, u, state)[::-1], state, length=2)

    state, values = run(rule.init(c))
    return np.asarray(values), state


def test_rules():
    """Norms, inner products and spreads written out in NumPy."""

    def norm(a):
        return np.sqrt(np.sum(a**2, axis=1, keepdims=True))

    d = C - U
    scale = 1 + 17 * np.exp(-0.3 * norm(d) / (norm(U) + 1e-8))
    values, report = combine(RAAG(w_max=18.0, alpha=0.3))
    np.testing.assert_allclose(values[0], U + scale * d, rtol=1e-13)
    np.testing.assert_allclose(report["scale"], scale[:, 0], rtol=1e-13)
    s = np.sum(C * U, axis=1, keepdims=True) / (norm(U) ** 2 + 1e-8)
    np.testing.assert_allclose(combine(CFGZeroStar(scale=3.0, zero_steps=1))[0][1], s * U + 3 * (C - s * U), rtol=1e-12)
    short = d * np.minimum(1, 0.7 / norm(d))
    orthogonal = short - np.sum(short * C, axis=1, keepdims=True) / norm(C) ** 2 * C
    np.testing.assert_allclose(combine(APG(scale=3.0, r=0.7))[0][0], C + 2 * orthogonal, rtol=1e-12)
    strong = U + 3 * d
    rescaled = C.std(axis=1, keepdims=True) / strong.std(axis=1, keepdims=True) * strong
    np.testing.assert_allclose(combine(Rescaled(rule=CFG(scale=3.0), phi=1.0))[0][0], rescaled, rtol=1e-13)


def test_threshold():
    flow = fj.Flow(lambda x, t, cond: 3 * x, path=Linear(), prediction="data")
    q = np.quantile(np.abs(3 * C), 0.9, axis=1, keepdims=True)
    found = Thresholded(flow, quantile=0.9).data(0.5, jnp.asarray(C))
    np.testing.assert_allclose(found, np.clip(3 * C, -q, q) / q, rtol=1e-13)


@pytest.mark.parametrize("solver", [fj.solvers.Adaptive(rtol=1e-10, atol=1e-10), fj.solvers.RK4()], ids=["ad", "rk4"])
def test_solvers(solver):
    """A guided run: the same law on both sides, so that the exact flow map is the answer."""
    target = Gaussian(mean=0.7, std=0.5, path=Linear())
    flow = fj.Flow(target.network(), path=Linear())
    x0 = jnp.asarray(C)
    field = fj.guide(flow, RAAG(w_max=3.0), against=flow)
    x = fj.solve(field, solver, x0, fj.times.uniform(100, 0.1, 0.9)).x
    assert x.dtype == jnp.float64
    np.testing.assert_allclose(x, target.flow_map(x0, 0.1, 0.9), atol=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        FlowMatching(path=VP(), prediction="noise", weight=lambda t: 1 + t),
        Interpolation(interpolant=Interpolant(), weight=lambda t: 1 + t),
        TeacherRegression(teacher=fj.Flow(lambda x, t, cond: x, path=VP()), weight=lambda t: 1 + t),
    ],
    ids=["flow", "interpolant", "teacher"],
)
def test_objectives(objective):
    draws = objective.draw(jax.random.key(0), {"x1": jnp.asarray(C)})
    assert draws.x0.dtype == jnp.float64
    seen = Seen()
    loss, _ = objective.loss(seen, draws)
    assert set(seen.dtypes) == {jnp.dtype(jnp.float64)}
    double = jax.tree.map(lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, draws)
    fine = objective.loss(seen, double)[0]
    np.testing.assert_allclose(loss, fine, rtol=1e-13)


def test_schroedinger_bridges():
    objective, seen = SchroedingerBridge(diffusion=0.3), Seen()
    draws = objective.draw(jax.random.key(0), {"x1": jnp.asarray(C)})
    networks = {"velocity": seen, "interpolant": lambda x, t, cond: seen(x[:, :6], t)}
    loss, _ = objective.loss(networks, draws)
    assert loss.dtype == jnp.float64
    assert set(seen.dtypes) == {jnp.dtype(jnp.float64)}


def test_layers_of_networks():
    t, h = jnp.asarray([0.1, 0.7]), jnp.asarray(RNG.normal(size=(2, 3, 8)))
    frequencies = 50 * 10_000.0 ** (-np.arange(4) / 4)
    angles = np.asarray(t)[:, None] * frequencies
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(embeddings.time_features(t, 8, 50.0), features, rtol=1e-13)
    assert embeddings.time_features(t.astype(jnp.bfloat16), 8, 50.0).dtype == jnp.float32
    a = np.asarray(h)
    centred = a - a.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layers.normalize(h), normal, rtol=1e-13)
    norm = unet.GroupNorm(8, 1, "embed", jnp.float64)
    image = a.reshape(2, 3, 1, 8)
    centred = image - image.mean((1, 2, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(image)), normal, rtol=1e-13)
    q = h.reshape(2, 3, 2, 4)
    scores = np.einsum("bnhd,bmhd->bhnm", q, q) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention.attend(q, q, q), np.einsum("bhnm,bmhd->bnhd", weights, q), rtol=1e-12)
    assert attention.attend(*[q.astype(jnp.bfloat16)] * 3).dtype == jnp.bfloat16


def test_networks():
    """Answers keep float64 to the end."""
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    image = jnp.zeros((2, 8, 8, 1))

    def answers():
        mlp = fj.models.MLP(6, width=8, depth=1, **options, rngs=nnx.Rngs(0))
        auto = fj.models.Autoencoder((8, 8, 1), channels=8, multipliers=(1,), groups=4, **options, rngs=nnx.Rngs(0))
        judge = fj.models.Discriminator((8, 8, 1), channels=4, layers=1, groups=2, **options, rngs=nnx.Rngs(0))
        mean, log_variance = auto.encode(image)
        return mlp(jnp.asarray(C), jnp.full(5, 0.3)), mean, log_variance, auto.decode(mean), judge(image)

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(answers))} == {jnp.dtype(jnp.float64)}


def test_calibration():
    """Errors of a schedule are those of its run; statistics ask the network at float64 times."""
    grid, x = fj.times.uniform(3, 0.1, 0.9), jnp.asarray(C)
    schedule = schedules.baselines(grid)["dpm_solver++_2m"]
    target = Gaussian(mean=0.7, std=0.5, path=Linear())
    flow = fj.Flow(target.network("noise"), path=Linear(), prediction="noise")
    run = fj.solve(flow, fj.solvers.USF(schedule=schedule), x, np.asarray(schedule.times)).x
    found = schedules.errors(flow, [schedule], x, jnp.zeros_like(x))
    np.testing.assert_allclose(found[0], np.mean(np.asarray(run) ** 2), rtol=1e-12)
    seen = Seen()
    noisy = fj.Flow(seen, path=Linear(), prediction="noise")
    ems.estimate(noisy, lambda i: (x, None), jax.random.key(0), points=2)
    assert set(seen.dtypes) == {jnp.dtype(jnp.float64)}


def test_noises_of_solvers():
    target = two_gaussians(Interpolant())
    flow = InterpolantFlow(target.network("velocity"), path=Interpolant(), second=target.network("denoiser"))
    field = DriftPlusScore(flow, diffusion=0.2)
    solver = fj.solvers.EulerMaruyama(diffusion=0.2, drift="field")
    x = fj.solve(field, solver, jnp.ones((2, 1)), fj.times.uniform(3, 0.1, 0.9), key=jax.random.key(0)).x
    assert x.dtype == jnp.float64
