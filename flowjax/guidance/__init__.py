"""Guidance rules: two predictions, with and without the condition, make one."""

from flowjax.guidance.apg import APG
from flowjax.guidance.autoguidance import Autoguidance
from flowjax.guidance.base import Rule
from flowjax.guidance.cfg import CFG
from flowjax.guidance.cfg_zero_star import CFGZeroStar
from flowjax.guidance.channels import Channels
from flowjax.guidance.interval import Interval
from flowjax.guidance.raag import RAAG
from flowjax.guidance.rescaled import Rescaled
