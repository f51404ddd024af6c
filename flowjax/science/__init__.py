"""Numerical methods of neighbouring sciences as small differentiable modules of pure functions.

`calibration`: gains and signal from bilinear measurements by linear least squares. `coherent_structures`: finite-time
Lyapunov exponents of vector fields, samplers and tracks; track initialisation. `transport`: neutral particles in a slab
with diffusion synthetic acceleration.
"""

from flowjax.science import calibration, coherent_structures, transport
