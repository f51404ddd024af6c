"""Searches at sampling time for samples with a high reward: one method per file, and `find`, which runs them."""

from flowjax.search.base import Search, Stochastic, falling
from flowjax.search.best_of_n import BestOfN
from flowjax.search.code import CoDe
from flowjax.search.find import Found, find
from flowjax.search.rbf import RBF
from flowjax.search.rewards import Reward, SearchError, brightness, log_density, nearness, on_host
from flowjax.search.smc import SMC
from flowjax.search.sop import SoP
from flowjax.search.svdd import SVDD
