"""Probability paths x_t = alpha(t) x1 + sigma(t) x0 from noise (t = 0) to data (t = 1)."""

from flowjax.paths.base import PREDICTIONS, GaussianPath
from flowjax.paths.diffusion import EDM, SBDM, SubVP
from flowjax.paths.gaussian import VE, VP, Cosine, Linear, Trig
from flowjax.paths.interpolant import Interpolant
from flowjax.paths.tabulated import Tabulated, linear_betas, scaled_linear_betas
