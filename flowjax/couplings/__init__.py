"""Which noise goes with which data."""

from flowjax.couplings.minibatch import ConditionalOT, Coupling, Independent, OptimalTransport, Sinkhorn, Stored
