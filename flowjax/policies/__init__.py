"""What a network answers for a whole stretch of time at once: curves of velocities, that are followed without it."""

from flowjax.policies.base import Head, Policy
from flowjax.policies.mixture import Mixture, MixturePolicy
from flowjax.policies.momentum import Momentum, MomentumPolicy
