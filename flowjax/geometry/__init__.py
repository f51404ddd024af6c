"""Points and cameras: small numerical systems as pure functions of one problem, made for `vmap`."""

from flowjax.data import shapes
from flowjax.geometry import corruptions, event_motion, event_simulation, point_sampling
from flowjax.geometry.cloud_classification import CloudClassification
from flowjax.geometry.pointnet import PointNet
