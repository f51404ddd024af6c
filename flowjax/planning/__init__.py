"""What a run needs on hardware that is not there: compiled for it, measured by its program."""

from flowjax.planning.flops import flops
from flowjax.planning.hardware import Chip, Topology, parse
from flowjax.planning.plan import Plan, plan_sampler, plan_step
