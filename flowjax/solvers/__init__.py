"""Samplers on fixed grids, one method per file, and diffrax's adaptive ones."""

from flowjax.paths.sde import Diffusion, Factor
from flowjax.solvers.adams_bashforth import AdamsBashforth
from flowjax.solvers.adaptive import Adaptive
from flowjax.solvers.bound import Bound, StepTo
from flowjax.solvers.consistency import Consistency
from flowjax.solvers.dc_solver import DCSolver
from flowjax.solvers.ddim import DDIM
from flowjax.solvers.deis import DEIS
from flowjax.solvers.dpm_adaptive import DPMAdaptive
from flowjax.solvers.dpm_solver import DPMSolver
from flowjax.solvers.dpm_solver_v3 import DPMSolverV3
from flowjax.solvers.edm import EDMHeun
from flowjax.solvers.er_sde import ERSDE
from flowjax.solvers.euler import Euler
from flowjax.solvers.euler_maruyama import EulerMaruyama
from flowjax.solvers.flowturbo import FlowTurbo
from flowjax.solvers.ghvb import GHVB
from flowjax.solvers.heavy_ball import HeavyBall
from flowjax.solvers.heun import Heun
from flowjax.solvers.jump import Jump
from flowjax.solvers.learned import Learned, Rows, rows_of
from flowjax.solvers.midpoint import Midpoint
from flowjax.solvers.nesterov import Nesterov
from flowjax.solvers.parallel import Parallel, ParallelRows
from flowjax.solvers.policy import Policy
from flowjax.solvers.rk4 import RK4
from flowjax.solvers.sa_solver import SASolver
from flowjax.solvers.solver import Formula, Solver, run_on_arrays
from flowjax.solvers.splitting import Splitting
from flowjax.solvers.statistics import Statistics
from flowjax.solvers.stochastic_heun import StochasticHeun
from flowjax.solvers.unipc import UniPC
from flowjax.solvers.usf import USF, Decision, Schedule
