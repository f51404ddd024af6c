"""Samplers on fixed grids, one method per file, and diffrax's adaptive ones."""

from flowjax.solvers.adams_bashforth import AdamsBashforth
from flowjax.solvers.adaptive import Adaptive
from flowjax.solvers.ddim import DDIM
from flowjax.solvers.dpm_solver import DPMSolver
from flowjax.solvers.euler import Euler
from flowjax.solvers.heavy_ball import HeavyBall
from flowjax.solvers.heun import Heun
from flowjax.solvers.midpoint import Midpoint
from flowjax.solvers.rk4 import RK4
from flowjax.solvers.rows import Bound, Formula, Solver, StepTo, run_on_arrays
