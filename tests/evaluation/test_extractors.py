import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import data, evaluation

pytestmark = pytest.mark.standard_promotion  # optax


@pytest.fixture(scope="module")
def bars():
    """Noisy images with a horizontal or a vertical bar."""
    rng = np.random.default_rng(0)
    cond = rng.integers(2, size=400).astype(np.int32)
    x = rng.normal(size=(400, 12, 12, 1))
    for image, label, place in zip(x, cond, rng.integers(12, size=400)):
        image[(place, slice(None)) if label else (slice(None), place)] += 4
    return data.Source(x=(100 + 20 * x).astype(np.float32), cond=cond, num_classes=2)


@pytest.mark.slow
def test_network_learns_and_is_named_by_its_weights(bars):
    options = dict(steps=60, batch=64, width=8)
    network = evaluation.train_network(bars.x, bars.cond, 2, **options)
    assert network.accuracy > 0.9
    assert np.mean(network.predict(bars.x) == bars.cond) > 0.9
    features = network.features(bars.x)
    assert features.shape == (400, 32)
    np.testing.assert_allclose(features.mean(0), 0.0, atol=0.15)
    np.testing.assert_allclose(features.std(0), 1.0, atol=0.15)
    np.testing.assert_allclose(network.traced(jnp.asarray(bars.x[:7], jnp.float32)), features[:7], atol=1e-4)
    again = evaluation.train_network(bars.x, bars.cond, 2, **options)
    assert again.digest == network.digest
    assert len(network.digest) == 8
    np.testing.assert_array_equal(again.features(bars.x[:7]), network.features(bars.x[:7]))
    assert evaluation.train_network(bars.x, bars.cond, 2, seed=1, **options).digest != network.digest
    with pytest.raises(ValueError, match=r"labels in 0\.\.1"):
        evaluation.train_network(bars.x, bars.cond + 1, 2)


def test_default_extractor_fits_the_data(monkeypatch, bars):
    calls = []

    def train(x, cond, num_classes, *, seed):
        calls.append((x.shape, num_classes, np.bincount(cond).tolist()))
        return evaluation.ImageClassifier(None, 0.0, 1.0, np.zeros(1), np.ones(1), 0.0, "network")

    monkeypatch.setattr(evaluation.extractors, "train_network", train)
    points = evaluation.default_extractor(data.toy2d("spiral", size=100))
    assert points.digest == "raw"
    assert isinstance(evaluation.default_extractor(bars), evaluation.Classifier)
    few = bars.x[:5]
    evaluation.default_extractor(data.Source(x=few))
    evaluation.default_extractor(data.Source(x=few[:, :6]))
    many = np.zeros((2000, 12, 12, 1), np.uint8)
    evaluation.default_extractor(data.Source(x=many, cond=np.arange(2000, dtype=np.int32) % 4, num_classes=4))
    with pytest.raises(ValueError, match="features of images"):
        evaluation.network_extractor(data.toy2d("spiral", size=100))
    assert calls == [
        ((20, 12, 12, 1), 4, [5, 5, 5, 5]),
        ((10, 6, 12, 1), 2, [5, 5]),
        ((2000, 12, 12, 1), 4, [500] * 4),
    ]


def test_a_feature_function_from_a_file(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, kernel=np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))
    seal = hashlib.sha256(path.read_bytes()).hexdigest()

    def build(path):
        kernel = np.load(path)["kernel"]
        return jax.jit(lambda x: jnp.tanh(x.reshape(x.shape[0], -1) @ kernel))

    extractor = evaluation.load_extractor(path, seal.upper(), build)
    assert isinstance(extractor, evaluation.Extractor)
    assert extractor.digest == seal[:8]
    x = np.random.default_rng(1).random((701, 2, 2, 3))
    kernel = np.load(path)["kernel"].astype(np.float64)
    np.testing.assert_allclose(extractor.features(x), np.tanh(x.reshape(701, -1) @ kernel), atol=1e-5)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="has the SHA-256"):
        evaluation.load_extractor(path, seal, build)
    with pytest.raises(ValueError, match="does not exist"):
        evaluation.load_extractor(tmp_path / "gone", seal, build)


def test_sample_report_names_its_features():
    rng = np.random.default_rng(0)
    a, b, far = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)), 1 + rng.normal(size=(200, 2))
    close, wide = (evaluation.sample_report(evaluation.Raw(), x, a) for x in (b, far))
    assert {"FD[raw]", "KID[raw]", "precision", "recall", "density", "coverage"} < close.keys()
    assert not any("FID" in name for name in close)
    for name in ("FD[raw]", "KID[raw]", "sliced_W2", "energy", "C2ST"):
        assert close[name] < wide[name]
    assert close["KID_low"] <= close["KID[raw]"] <= close["KID_high"]
    assert all(type(value) is float for value in close.values())
