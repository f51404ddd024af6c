"""What a run is measured by."""

import numpy as np
import pytest

from flowjax import data, train
from flowjax._cli import run
from flowjax.evaluation import Classifier
from flowjax.recipe import report

pytestmark = pytest.mark.standard_promotion  # optax


def test_judge_is_trained_on_the_data():
    rng = np.random.default_rng(0)
    cond = np.arange(40, dtype=np.int32) % 2
    points = data.Source(x=cond[:, None] + 0.1 * rng.normal(size=(40, 2)), cond=cond, num_classes=2)
    judge = report.make_judge(points)
    assert isinstance(judge, Classifier)
    assert judge.accuracy == 1
    assert report.make_judge(data.toy2d("spiral", size=50)).digest == "raw"
    assert report.score("FD", {"loss": 9.0, "FD[raw]": 2.0}, report.METRICS) == 2
    assert report.score("accuracy", {"accuracy": 0.7, "accuracy_0": 0.1}, report.METRICS) == -0.7


CONFIG = """
from flowjax._cli import load_config
def get_config(argument=""):
    config = load_config("digits:smoke").copy_and_resolve_references()
    config.unlock()
    config.data.augment = {"crop": 1}
    return config
"""


@pytest.mark.slow
def test_images_are_changed_at_random_where_the_config_says_so(tmp_path, monkeypatch):
    shapes, plain = [], data.Augment.__call__
    monkeypatch.setattr(data.Augment, "__call__", lambda self, u, x: shapes.append(x.shape) or plain(self, u, x))
    (tmp_path / "moved.py").write_text(CONFIG)
    with pytest.raises(SystemExit) as end:
        run(train.main, train.define, ["train", f"--config={tmp_path / 'moved.py'}", f"--workdir={tmp_path / 'run'}"])
    assert end.value.code == 0
    assert len(shapes) >= 2
    assert set(shapes) == {(8, 8, 8, 1)}
