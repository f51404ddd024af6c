"""Guidance rules: several predictions, with and without the condition, make one."""

from flowjax.guidance.apg import APG
from flowjax.guidance.autoguidance import Autoguidance
from flowjax.guidance.base import Rule
from flowjax.guidance.cfg import CFG
from flowjax.guidance.cfg_zero_star import CFGZeroStar
from flowjax.guidance.channels import Channels
from flowjax.guidance.composed import Composed
from flowjax.guidance.frequency import FrequencyDecoupled
from flowjax.guidance.interval import Interval
from flowjax.guidance.nested import Nested
from flowjax.guidance.perturbed import PerturbedAttention
from flowjax.guidance.raag import MAMBOG, RAAG
from flowjax.guidance.rescaled import Rescaled
from flowjax.guidance.scales import Each, RaisedCosine, Ramp, Table, in_turn
from flowjax.guidance.separate import Separate
from flowjax.guidance.tangential import Tangential
