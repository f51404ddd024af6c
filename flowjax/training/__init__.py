"""What a training loop is made of: mesh, state, step, averages, checkpoints, writers."""

from flowjax.training import ema
from flowjax.training.checkpoint import Checkpoints, reconstruct, restore_average
from flowjax.training.mesh import RULES, batch_sharding, local_part, make_mesh, over, put_batch, shardings
from flowjax.training.preemption import Preemption
from flowjax.training.profiling import Profile
from flowjax.training.state import TrainState, check_size, create_state
from flowjax.training.step import compile_step, make_step
from flowjax.training.store import Store
