"""How a run looks at its network."""

import jax
import numpy as np
import pytest
from flax import nnx

from flowjax import data, train
from flowjax._cli import load_config
from flowjax.training import make_mesh, tasks

pytestmark = pytest.mark.standard_promotion


def test_pictures_show_every_network_from_the_same_noise(tmp_path, monkeypatch):
    """Also after measuring, and whatever the network."""
    config, source = load_config("toy2d:smoke"), data.toy2d("spiral", size=60)
    task = train.make_task(config, source, make_mesh(), jax.random.key(3))
    shown = []
    monkeypatch.setattr(tasks, "picture", lambda recipe, samples, path, source: shown.append(samples.x))
    first, second = (task.build_network(nnx.Rngs(seed)) for seed in (0, 1))
    task.show(first, tmp_path / "a.png")
    assert "FD[raw]" in task.assess(first)
    second.unembed.bias[...] = second.unembed.bias[...] + 1  # a new network is zero: it moves nothing
    task.show(second, tmp_path / "b.png")
    task.show(first, tmp_path / "c.png")
    np.testing.assert_array_equal(shown[0], shown[2])
    np.testing.assert_allclose(shown[1] - shown[0], source.scale, rtol=1e-4)
