"""Which noise goes with which data."""

from flowjax.couplings.minibatch import ConditionalOT, Coupling, Independent, OptimalTransport, Sinkhorn, Stored
from flowjax.couplings.semidiscrete import SemidiscreteMap, fit, optimal_heights
