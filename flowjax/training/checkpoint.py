"""The checkpoints of a `TrainState`, in a `Store`.

Each checkpoint has the items `average` (the weights that sampling uses), `average-NAME` for each further average,
`memory` where the objective has one, and `state` (the rest); sampling reads a part of it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.training.ema import combination
from flowjax.training.state import TrainState
from flowjax.training.store import Store


def _items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint."""
    items = {name if name == "average" else f"average-{name}": tree for name, tree in state.averages.items()}
    items |= {} if state.memory is None else {"memory": state.memory}
    kept = {"step": state.step, "network": state.networks, "optimizer": state.optimizer, "counts": dict(state.counts)}
    return {**items, "state": kept}


def _older(items: dict[str, Any]) -> dict[str, Any]:
    """The items of a checkpoint of a single network from before there were counts for each label."""
    kept = dict(items["state"])
    counts = jax.tree.leaves(kept.pop("counts"))[0]
    return {**items, "state": {**kept, "skipped": jax.ShapeDtypeStruct((2,), counts.dtype, sharding=counts.sharding)}}


class Checkpoints(Store):
    """The checkpoints of one run; a context manager that waits for unfinished writes when it closes.

    A checkpoint appears under its final name only when it is complete, so a run killed at any moment finds
    the last complete one.

    Args:
        folder: Where they lie; created if needed.
        keep: Number of newest checkpoints that are kept; the one with the lowest score is kept besides them.

    Attributes:
        damaged: Steps of the damaged checkpoints that `restore` passed over and removed.
        damage: What is wrong with the newest of them.

    Example:
        >>> import tempfile
        >>> from flowjax.training import Checkpoints
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=2) as checkpoints:
        ...     checkpoints.latest is None, checkpoints.damaged  # a run that begins
        (True, [])
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        super().__init__(folder, keep)
        self.damaged: list[int] = []
        self.damage = ""

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
            state: What is saved, under the number of its step.
            score: Lower is better; the best is what `flowjax.load(workdir, which="best")` gives.
        """
        self.put(int(state.step), _items(state), score)

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint that is not damaged, with the structure and the shardings of `like`.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is of another structure.
        """
        new, single = _items(like), set(like.counts) == {"network"}

        def fitting(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
            return _older(new) if single and "skipped" in manifest.get("state", {}) else new

        step, items, damaged = self.get_first(reversed(self.steps), fitting)
        self.damaged, self.damage = list(damaged), next(iter(damaged.values()), "")
        if step is None:
            why = f"no checkpoint in {self.folder} can be read (damaged: {self.damaged}); {self.damage}"
            raise FileNotFoundError(why)
        self.delete_after(step)
        kept = items["state"]
        if "counts" not in kept:
            row, bad = kept.pop("skipped")
            kept["counts"] = {"network": jax.device_put(jnp.stack([kept["step"] - bad, row, bad]), row.sharding)}
        averages = {name: items["average" if name == "average" else f"average-{name}"] for name in like.averages}
        return TrainState(averages=averages, networks=kept.pop("network"), memory=items.get("memory"), **kept)


def restore_average(folder: str | Path, like: Any, which: str = "latest", name: str | None = None) -> Any:
    """The averaged network of a checkpoint, with the structure and the shardings of `like`.

    Damaged checkpoints, and those with NaN or infinite values, are passed over with a warning.

    Args:
        folder: The folder of the checkpoints.
        like: Network of arrays or shapes with shardings.
        which: "latest", or "best" for the lowest score.
        name: A further average; None is the one that sampling uses.

    Raises:
        FileNotFoundError: No complete checkpoint lies in `folder`, or all are damaged.
        ValueError: An unknown `which`, or a checkpoint of another structure.
    """
    if which not in ("latest", "best"):
        raise ValueError(f"which must be 'latest' or 'best', got {which!r}")
    item = "average" if name is None else f"average-{name}"
    with Store(folder, write=False) as store:
        steps = store.steps[::-1] if which == "latest" else store.ranked(store.steps)
        step, found, damaged = store.get_first(steps, {item: like})
    why = next(iter(damaged.values()), "")
    if step is None:
        kind = "complete" if which == "latest" else "scored"
        raise FileNotFoundError(f"no {kind} checkpoint in {folder}" + (f" can be read; {why}" if why else ""))
    if damaged:
        warnings.warn(f"damaged checkpoints in {folder}: {list(damaged)}; step {step} is used; {why}", stacklevel=2)
    return found[item]


def reconstruct(folder: str | Path, like: Any, std: float, step: int | None = None) -> Any:
    """A power average of any length, made from the stored ones (`flowjax.training.ema.combination`).

    Args:
        folder: The folder of the snapshots of a run.
        like: Network of arrays or shapes with shardings.
        std: Relative standard deviation of its profile, in (0, 0.2886].
        step: Where it ends; the newest snapshot by default.

    Raises:
        FileNotFoundError: No snapshot lies in `folder`.
        ValueError: `std` or `step` is outside its range, or a snapshot is damaged.
    """
    with Store(folder, write=False) as store:
        stored = [(s, path.name) for s in store.steps for path in (store.folder / str(s)).glob("power-*")]
        if not stored:
            raise FileNotFoundError(f"no snapshots of power averages in {folder}")
        step = stored[-1][0] if step is None else step
        weights = combination([(s, float(item.removeprefix("power-"))) for s, item in stored], step, std)
        total = None
        for weight, (s, item) in zip(weights.tolist(), stored):
            part = jax.tree.map(lambda leaf: weight * leaf, store.get(s, {item: like})[item])  # noqa: B023
            total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total
