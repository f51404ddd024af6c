"""What all recipes share; a config states what differs.

    config = base(data=spec("digits"), network=spec("dit", image_shape=(8, 8, 1), ...))

A section that a task does not read is not there, so that an override of it is refused, not ignored.
"""

from typing import Any

from ml_collections import ConfigDict

SECTIONS = {
    "generation": ("network", "path", "objective", "coupling", "codec", "sample"),
    "autoencoding": ("network", "discriminator", "encoder", "objective"),
    "distillation": ("network", "path", "objective", "coupling", "codec", "sample", "teacher"),
    "adapters": ("base", "adapters", "objective", "coupling", "sample"),
    "classification": ("network", "objective"),
    "regression": ("network", "objective"),
    "clouds": ("network", "objective", "test"),
}


def spec(name: str = "", **options: Any) -> dict[str, Any]:
    """A named thing with its options, see docs/specs.md; without a name, none."""
    return {"name": name, "options": options}


def base(kind: str = "generation", argument: str = "", arguments: tuple[str, ...] = (), **sections: Any) -> ConfigDict:
    """The shared config with what differs, section by section.

    Args:
        kind: what is trained, an entry of `catalogue.tables["task"]`.
        argument: that of `get_config`.
        arguments: those that the config knows beside "" and "smoke".
        **sections: a spec in place of a spec; entries of the other sections that differ.

    Raises:
        ValueError: an unknown argument, or a section that the task does not read.
    """
    allowed = (*arguments, "smoke")
    if argument not in ("", *allowed):
        raise ValueError(f"unknown argument {argument!r} (allowed: {', '.join(allowed)})")
    config: dict[str, Any] = {
        "seed": 0,
        "task": spec(kind),
        "data": spec() | {"augment": {"flip": False, "crop": 0}},
        "network": spec(),
        "discriminator": spec(),
        "encoder": spec(),
        "path": spec("linear"),
        "objective": spec("flow_matching", prediction="velocity", times=spec("uniform"), label_dropout=0.0),
        "coupling": spec(),
        "codec": spec(),
        "teacher": spec("run", workdir=""),
        "base": spec("run", workdir=""),
        "adapters": spec("lora", rank=4),
        "test": {},
        "optimizer": spec("adamw", rate=1e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0),
        "train": {
            "steps": 1000,
            "batch": 64,
            "accumulate": 1,
            "max_skipped": 20,
            "ema": 0.99,
            "averages": {},
            "snapshot_every": 0,
            "report_every": 50,
            "sample_every": 500,
            "checkpoint_every": 500,
            "keep": 2,
            "best": "loss",
        },
        "sample": {
            "solver": spec("heun"),
            "times": spec("uniform"),
            "steps": 10,
            "guidance": 1.0,
            "against": {},
            "fields": (),
            "num": 1000,
            "batch": 200,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1},
    }
    if kind == "distillation":  # what the teacher has
        config |= {"path": spec(), "objective": spec("teacher_regression")}
    shared = ("seed", "task", "data", "optimizer", "train", "mesh")
    config = {name: value for name, value in config.items() if name in (*shared, *SECTIONS[kind])}
    for name, value in sections.items():
        if name not in config:
            raise ValueError(f"a {kind} config has no section {name!r}; it has {', '.join(config)}")
        replaces = isinstance(value, dict) and ("name" in value or name == "optimizer")  # one spec, or one per label
        config[name] = config[name] | value if isinstance(value, dict) and not replaces else value
        if name == "data":
            config[name] = {"augment": {"flip": False, "crop": 0}} | config[name]
    return ConfigDict(config)


def smoke(config: ConfigDict) -> ConfigDict:
    """Two steps on few examples, for a config whose network and data are small already."""
    config.train.update(steps=2, batch=8, report_every=1, sample_every=1, checkpoint_every=1)
    if "sample" in config:
        config.sample.update(num=40, batch=40, steps=2)
    return config
