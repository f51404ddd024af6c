"""From eight Gaussians to two moons, without noise: flow matching between two laws, paired by optimal transport.

Expected on 2 CPU cores: after one Euler step an energy distance of 0.0018 between 2,000 samples and 2,000 points of the
moons, after eight 0.0010; with pairs at random, `moons:independent`, 0.35 and 0.010. Frechet distance 5e-4 after four
steps of Heun, loss 0.0126 at the last step. The run took 128 seconds on cores shared with other work, 56 without the
coupling; the numbers are in `benchmarks/results/moons-cpu.json`.
"""

from flowjax.configs.base import base, smoke, spec
from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `independent` pairs at random, `smoke` trains a small network for two steps.

    Raises:
        ValueError: Another argument.
    """
    config = base(
        argument=argument,
        arguments=("independent",),
        data=spec("laws", source="eight_gaussians", target="two_moons", size=50_000, seed=0),
        network=spec("mlp", dim=2, width=128, depth=3),
        path=spec("interpolant", form="linear", gamma="zero"),
        objective=spec("interpolation", prediction="velocity", antithetic=False),
        coupling=spec("independent" if argument == "independent" else "optimal_transport"),
        optimizer=spec("adamw", rate=2e-3, warmup=0.02, b2=0.99, weight_decay=0.0, clip=1.0),
        train=dict(steps=2000, batch=256, ema=0.995, report_every=100, sample_every=1000, checkpoint_every=1000),
        sample=dict(steps=4, num=10_000, batch=10_000),
    )
    if argument == "smoke":
        config.network.options.update(width=16, depth=1)
        smoke(config)
    return config
