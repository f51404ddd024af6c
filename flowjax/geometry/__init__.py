"""Points and cameras: small numerical systems as pure functions of one problem, made for `vmap`."""

from flowjax.geometry import corruptions, event_motion, point_sampling, shapes
from flowjax.geometry.pointnet import PointNet
