"""What is computed once per trained model and then used by a solver."""

from flowjax.calibration import compensation, ems, grids, learning
from flowjax.calibration.store import load, model_hash, save
from flowjax.calibration.use import KINDS
