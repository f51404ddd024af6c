"""Fields around fields: guided, given a measurement, and what changes a field between the network and the solver."""

from flowjax.fields import operators
from flowjax.fields.added import Added
from flowjax.fields.bounded import Bounded
from flowjax.fields.classifier import classifier
from flowjax.fields.converted import Converted
from flowjax.fields.curved import Curved
from flowjax.fields.discrete_time import DiscreteTime
from flowjax.fields.dps import DPS
from flowjax.fields.drift import DriftPlusScore, InterpolantFlow, sde_terms
from flowjax.fields.embedded import Embedded
from flowjax.fields.every_nth import EveryNth
from flowjax.fields.first_block import FirstBlock
from flowjax.fields.gradient import Gradient
from flowjax.fields.guided import Guided, guide
from flowjax.fields.held import Held
from flowjax.fields.magcache import MagCache
from flowjax.fields.mmps import MMPS
from flowjax.fields.operators import Blurred, Masked, Pooled
from flowjax.fields.pgdm import PGDM
from flowjax.fields.posterior import Posterior
from flowjax.fields.sada import SADA
from flowjax.fields.saving import Saving
from flowjax.fields.teacache import TeaCache
from flowjax.fields.thresholded import Thresholded
from flowjax.fields.wrapper import FieldWrapper
