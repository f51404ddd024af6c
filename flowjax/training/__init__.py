"""What a training loop is made of: mesh, state, step, checkpoints, writers."""

from flowjax.training.checkpoint import Checkpoints, restore_average
from flowjax.training.mesh import RULES, batch_sharding, make_mesh, put_batch, shardings
from flowjax.training.state import TrainState, create_state
from flowjax.training.step import compile_step, make_step
