"""Training objectives: `draw(key, batch)` holds everything random, `loss(networks, draws)` nothing random."""

from flowjax.objectives import times
from flowjax.objectives.flow_matching import Draws, FlowMatching
