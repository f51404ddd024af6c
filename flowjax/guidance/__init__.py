"""Guidance rules: two predictions, with and without the condition, make one."""

from flowjax.guidance.apg import APG
from flowjax.guidance.base import Rule
from flowjax.guidance.cfg import CFG
from flowjax.guidance.interval import Interval
