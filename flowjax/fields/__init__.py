"""Fields around fields: guided, and what changes a field between the network and the solver."""

from flowjax.fields.guided import Guided, guide
