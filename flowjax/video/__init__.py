"""Systems for moving pictures, as pure functions on frames (T, H, W, C) and flows (T - 1, H, W, 2)."""

from flowjax.video import clips, stabilization
