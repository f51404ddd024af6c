"""Searching samples of a trained flow for a high reward, where a request asks for it."""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from flowjax import specs
from flowjax._pytree import pytree, static
from flowjax.conditions import resized
from flowjax.facts import entries
from flowjax.guidance import Each
from flowjax.recipe.decoding import decoded, unscaled
from flowjax.recipe.request import Request, Samples
from flowjax.search import Reward, Search, SearchError, find
from flowjax.search.find import prepared
from flowjax.search.rewards import collected, named, whole
from flowjax.training.mesh import batch_sharding, over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched(Samples):
    """Samples that a search has found.

    Attributes:
        reward: (N,) of each.
        rewards: (N,) by name: each of several rewards, and those held out.
        held_out: Which of them are held out.
        history: (N, rounds + 1) the largest reward so far, after the first states and each round.
        history_evaluations: (rounds + 1,) evaluations made by then.
        reward_calls: States of one result that the reward judged.
        failed: (N,) whether the reward failed; the sample is then the best until there.

    Example:
        >>> import numpy as np
        >>> from flowjax.recipe.searching import Searched
        >>> one = dict(x=np.zeros((1, 2)), cond=None, evaluations=4, network_calls=4, reward=np.ones(1), rewards={})
        >>> more = dict(held_out=(), history=np.ones((1, 2)), history_evaluations=np.array([2, 4]))
        >>> found = Searched(**one, **more, reward_calls=2, failed=np.zeros(1, bool))
        >>> sorted(found.arrays), found.notes
        (['evaluations', 'history', 'history_evaluations', 'reward', 'x'], ', reward 1')
    """

    reward: np.ndarray
    rewards: dict[str, np.ndarray]
    held_out: tuple[str, ...]
    history: np.ndarray
    history_evaluations: np.ndarray
    reward_calls: int
    failed: np.ndarray

    @property
    def arrays(self) -> dict[str, Any]:
        """Also `reward`, `reward_NAME`, `held_out_NAME`, `evaluations` and the history, one row for each sample."""
        num = len(self.x)
        found = {"reward": self.reward, "evaluations": np.full(num, self.evaluations), "history": self.history}
        found["history_evaluations"] = np.tile(self.history_evaluations, (num, 1))
        for name, values in self.rewards.items():
            found[f"{'held_out' if name in self.held_out else 'reward'}_{name}"] = values
        return super().arrays | found | ({"failed": self.failed} if self.failed.any() else {})

    @property
    def notes(self) -> str:
        """Mean rewards."""
        means = {"reward": self.reward} | {f"held out {name}": self.rewards[name] for name in self.held_out}
        return "".join(f", {name} {np.mean(values):.4g}" for name, values in means.items())

    def finite(self) -> "Searched":
        """Those samples that have been found at all."""
        rows = np.isfinite(self.x.reshape(len(self.x), -1)).all(1)
        kept = {name: getattr(self, name)[rows] for name in ("x", "reward", "history", "failed")}
        cond = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self.cond)
        rewards = {name: values[rows] for name, values in self.rewards.items()}
        return dataclasses.replace(self, cond=cond, rewards=rewards, **kept)


@pytree
class Decoded:
    """What rewards see of states of a network: examples in the scale of the data.

    Example:
        >>> from flowjax.recipe.searching import Decoded
        >>> float(Decoded(shift=1.0, scale=4.0)(jax.numpy.array(0.5)))
        3.0
    """

    shift: float
    scale: float
    codec: Any = None
    latent_shift: Any = 0.0
    latent_scale: Any = 1.0
    tiles: tuple[int, int] | None = static(None)

    @classmethod
    def of(cls, recipe: Any, codec: Any) -> "Decoded":
        """What a recipe of a flow makes of states, with the codec of `load_run` or None."""
        if recipe.codec is None:
            return cls(shift=recipe.shift, scale=recipe.scale)
        network, shift, scale, tiles = unscaled(codec, recipe.codec)
        own = dict(codec=network, latent_shift=shift, latent_scale=scale, tiles=tiles)
        return cls(shift=recipe.shift, scale=recipe.scale, **own)

    def __call__(self, x: Array) -> Array:
        """Examples (B, ...) of states (B, ...)."""
        if self.codec is not None:
            x = decoded(self.codec, self.latent_shift, self.latent_scale, self.tiles, x)
        return x * self.scale + self.shift


_decoded = jax.jit(lambda decoded, x: decoded(x))


def rewards_of(given: Any) -> dict[str, Reward]:
    """Rewards by name: of texts "module:function", separated by commas, of functions, or of a mapping of these.

    Raises:
        ValueError: A text that names no function.
    """
    if isinstance(given, str):
        return {text.strip(): named(text) for text in given.split(",")}
    return collected(given)


def check_search(recipe: Any, request: Request) -> Search:
    """The search that a request asks for.

    Raises:
        ValueError: One that does not go with the rest of the request, or with the recipe.
    """
    search = specs.build("search", request.search)
    given = [n for n in ("solver", "times", "steps", "calibration", "straightness") if getattr(request, n) is not None]
    if given:
        raise ValueError(
            f"{given[0]} is given, but a search makes steps of its own: write them into it, such as rbf(steps=10)"
        )
    if request.reward is None:
        raise ValueError("a search needs a reward, module:function of a function of samples (B, ...) that returns (B,)")
    if recipe.starts_from_data or recipe.padded is not None:
        why = "starts from data" if recipe.starts_from_data else "makes padded sets"
        raise ValueError(f"a search samples whole examples from noise, and this flow {why}")
    if other := [name for name in ("edit", "against", "second") if getattr(request, name)]:
        raise ValueError(f"a search samples from noise under one condition: leave {other[0]} out")
    fields = [specs.name_and_options(spec)[0] for spec in recipe.all_fields(request)]
    coupled = [name for name in fields if entries("field")[name].couples_batch]
    if getattr(recipe.build_rule(request.guidance), "couples_batch", False):
        coupled.append("this rule of guidance")
    if coupled:
        raise ValueError(f"{coupled[0]} couples the samples of a batch, which a search compares")
    field = recipe.field(recipe.flow_in_shapes, request.guidance, request.fields, networks=recipe.other_shapes)
    if any(isinstance(leaf, Each) for leaf in jax.tree.leaves(field, is_leaf=lambda leaf: isinstance(leaf, Each))):
        raise ValueError("a search makes many states of each sample: each(...) of guidance has no values for them")
    prepared(field, search)
    rewards_of(request.reward), rewards_of(request.held_out)
    return search


def sources(request: Request) -> dict[str, str]:
    """The files that hold the rewards of a request, by their names as hashes.

    Raises:
        ValueError: Rewards that are no texts.
    """
    found = {}
    for given in (request.reward, request.held_out):
        if given is not None and not isinstance(given, str):
            raise ValueError("samples in a folder are those of named rewards: write reward='module:function'")
        for name, reward in rewards_of(given).items() if given is not None else ():
            function = inspect.unwrap(reward.function)
            file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
            found[name] = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    return found


def search_samples(recipe: Any, networks: Mapping[str, Any], request: Request, cond: Any, mesh: Mesh) -> Searched:
    """Results first..first+num-1 of a search; result i depends on (seed, i, its conditions) only.

    Args:
        recipe: A recipe of a flow that accepts the request.
        networks: From `load_run`.
        request: What is asked for. `batch` is how often the network is asked at once: of each result as often as its
            search does.
        cond: Conditions of the results.
        mesh: Splits what is asked at once over its devices.

    Raises:
        SearchError: A reward failed; its attribute `found` is a `Searched` of what was found until then, or None.
    """
    search = check_search(recipe, request)
    rewards, others = (
        {name: _with_texts(recipe, reward) for name, reward in rewards_of(given).items()}
        for given in (request.reward, request.held_out)
    )
    flow = recipe.flow(networks["network"])
    field = recipe.field(flow, request.guidance, request.fields, networks=networks)
    shown = Decoded.of(recipe, networks.get("codec"))
    size = min(max(request.batch // max(search.starts, search.rows), 1), request.num)
    found, failure = [], None
    with over(mesh):
        for first in range(0, request.num, size):
            try:
                block = find(
                    field,
                    search,
                    rewards,
                    (size, *recipe.state_shape),
                    key=jax.random.key(request.seed),
                    cond=resized(cond, first, size),
                    index=request.first + first,
                    held_out=others,
                    decode=shown,
                    sharding=batch_sharding(mesh),
                )
            except SearchError as error:
                block, left = error.found, request.num - first  # the last block is filled up
                bad = [whole(block.failed), *(np.isnan(whole(values)) for values in block.rewards.values())]
                if error.__cause__ is not None or any(rows[:left].any() for rows in bad):
                    failure = error
            found.append(jax.tree.map(whole, dataclasses.replace(block, x=_decoded(shown, block.x))))
            if failure is not None:
                break
    rounds = min(len(block.history["evaluations"]) for block in found)

    def rows(of: Any) -> np.ndarray:
        return np.concatenate([of(block) for block in found])[: request.num]

    x = rows(lambda block: block.x)
    samples = Searched(
        x=x,
        cond=jax.tree.map(lambda leaf: leaf[: len(x)], recipe.shown_conditions(cond)),
        evaluations=int(found[0].evaluations),
        network_calls=int(found[0].network_calls),
        reward=rows(lambda block: block.reward),
        rewards={name: rows(lambda block, name=name: block.rewards[name]) for name in found[0].rewards},
        held_out=tuple(others),
        history=rows(lambda block: block.history["reward"][:, :rounds]),
        history_evaluations=found[0].history["evaluations"][:rounds],
        reward_calls=int(found[0].reward_calls),
        failed=rows(lambda block: block.failed),
    )
    if failure is not None:
        raise SearchError(failure.reason, samples) from failure
    return samples


def _with_texts(recipe: Any, reward: Reward) -> Reward:
    """A reward on the host, which gets conditions as people read them."""
    if not reward.host or not isinstance(recipe.null, dict):
        return reward
    if "cond" not in inspect.signature(reward.function).parameters:
        return reward
    function = reward.function
    return dataclasses.replace(reward, function=lambda x, cond: function(x, cond=recipe.shown_conditions(cond)))
