"""Rewards: functions that are compiled with the search, or called on the host."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from flowjax._pytree import pytree, static
from flowjax.paths.base import precision


class SearchError(ValueError):
    """A reward failed during a search.

    Attributes:
        reason: which reward failed, and how.
        found: what was found until then, a `flowjax.search.Found`, or None.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> flow, search = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear()), fj.search.BestOfN(budget=20)
        >>> try:
        ...     fj.search.find(flow, search, lambda x: jnp.full(len(x), jnp.nan), (1, 2), key=jax.random.key(0))
        ... except fj.search.SearchError as error:
        ...     print(int(error.found.evaluations), bool(error.found.failed[0]))
        20 True
    """

    def __init__(self, message: str, found: Any = None):
        kept = "" if found is None else "; what was found until then is the attribute `found` of this error"
        super().__init__(message + kept)
        self.reason, self.found = message, found


@pytree
class Reward:
    """A reward function; `find` makes one of a plain function, which it compiles.

    Args:
        function: called with samples (B, ...), and with `cond=`, their conditions, if it has an argument of this name;
            returns (B,) real numbers, large where samples are good. -inf is allowed, NaN is an error. It judges each
            sample by itself.
        host: whether it is called outside of compiled code, with NumPy arrays.
        name: for messages and files.

    Raises:
        ValueError: it cannot be called so.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> reward = fj.search.on_host(lambda x: [float(image.mean()) for image in x])
        >>> reward.host, reward(np.ones((2, 4, 4, 1)), None).tolist()
        (True, [1.0, 1.0])
    """

    positional = ("function",)

    function: Any
    host: bool = static(False)
    name: str = static("reward")

    def __post_init__(self) -> None:
        """Checks the function."""
        if not callable(self.function):
            raise ValueError(f"a reward is a function of samples (B, ...) that returns (B,), got {self.function!r}")
        try:
            inspect.signature(self.function).bind(None, **({"cond": None} if self._takes_cond else {}))
        except TypeError as error:
            raise ValueError(
                f"the reward {self.name} is called with samples, and cond= if it has it: {error}"
            ) from None
        except ValueError:  # written in C
            pass

    @property
    def _takes_cond(self) -> bool:
        try:
            return "cond" in inspect.signature(self.function).parameters
        except ValueError:
            return False

    def __call__(self, x: Any, cond: Any) -> Any:
        """Rewards (B,) of samples (B, ...).

        Raises:
            ValueError: an answer of another shape; of a compiled one whatever it raises.
        """
        xp = np if self.host else jnp
        try:
            value = xp.asarray(self.function(x, cond=cond) if self._takes_cond else self.function(x))
        except jax.errors.JAXTypeError as error:
            raise ValueError(
                f"the reward {self.name} cannot be compiled, as it needs the numbers themselves: decorate it with "
                "flowjax.search.on_host, which calls it with NumPy arrays"
            ) from error
        except Exception as error:
            if self.host:
                raise
            raise ValueError(f"the reward {self.name} raises {type(error).__name__}: {error}") from error
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"the reward {self.name} answers with shape {value.shape} for samples of shape {x.shape}; it must "
                f"return one number for each, {x.shape[:1]}"
            )
        if not (xp.issubdtype(value.dtype, xp.floating) or xp.issubdtype(value.dtype, xp.integer)):
            raise ValueError(f"the reward {self.name} answers with {value.dtype}, it must return real numbers")
        return value.astype(precision(x))


def on_host(function: Callable[..., Any]) -> Reward:
    """A reward that is called outside of compiled code, with NumPy arrays: judges of other libraries or processes.

    A decorator. Rewards without it are compiled with the search, and may have gradients.

    Args:
        function: called with samples (B, ...) as NumPy arrays, and with `cond=` if it has it; returns B numbers.
    """
    return Reward(function, host=True, name=getattr(function, "__name__", "reward"))


def brightness(x: Array) -> Array:
    """The mean of all entries of each sample: a reward to try searches with."""
    return x.reshape(len(x), -1).mean(axis=1)


def nearness(target: Any) -> Callable[[Array], Array]:
    """Minus the squared distance from a target, which broadcasts to the samples (B, ...)."""
    return lambda x: -((x - target) ** 2).reshape(len(x), -1).sum(axis=1)


def log_density(law: Any) -> Callable[[Array], Array]:
    """The log density of data under a law of `flowjax.oracles`."""
    return lambda x: law.log_density(jnp.ones((), precision(x)), x)


def as_reward(given: Any, name: str = "reward") -> Reward:
    """A `Reward` of a function, or one itself."""
    return given if isinstance(given, Reward) else Reward(given, name=getattr(given, "__name__", name))


def named(text: str) -> Reward:
    """The function that "module:function" names, looked for from the current folder on.

    It is code, and runs: only whoever types a command names it, never a file.

    Raises:
        ValueError: no such module or function, or a module that fails.
    """
    module, colon, function = text.strip().partition(":")
    if not (module and colon and function):
        raise ValueError(f"a reward is named module:function, for example judges:brightness, got {text!r}")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = attrgetter(function)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        where = f"; looked for it in {Path.cwd()} and in what is installed" if error.name == module else ""
        raise ValueError(f"the reward {text}: no module {error.name!r}{where}") from error
    except AttributeError as error:
        raise ValueError(f"the reward {text}: {error}") from error
    except Exception as error:
        raise ValueError(f"the reward {text}: its module fails with {type(error).__name__}: {error}") from error
    if isinstance(found, Reward):
        return Reward(found.function, host=found.host, name=text.strip())
    return Reward(found, name=text.strip())


@pytree
class Total:
    """The sum of several rewards.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.search.rewards import Reward, Total
        >>> both = Total(parts=(Reward(lambda x: x[:, 0]), Reward(lambda x: 2 * x[:, 1])))
        >>> both(jnp.ones((1, 2)), None).tolist(), both.host
        ([3.0], False)
    """

    parts: tuple[Reward, ...]

    @property
    def host(self) -> bool:
        """Whether one is called on the host; all are then."""
        return any(part.host for part in self.parts)

    @property
    def name(self) -> str:
        """Theirs."""
        return " + ".join(part.name for part in self.parts)

    def __call__(self, x: Any, cond: Any) -> Any:
        """Their sum, (B,)."""
        values = [part(x, cond) for part in self.parts]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return np.asarray(total) if self.host else total


def collected(given: Any) -> dict[str, Reward]:
    """Rewards by name, of one or of a mapping."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        given = {as_reward(given).name: given}
    return {str(name): as_reward(reward, str(name)) for name, reward in given.items()}


def whole(array: Any) -> np.ndarray:
    """An array in every process."""
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    return multihost_utils.process_allgather(array, tiled=True) if spread else np.asarray(array)


def judge(reward: Any, x: Array, cond: Any) -> tuple[np.ndarray, Exception | None]:
    """Rewards on the host, and what it raised instead: then they are NaN.

    The first process asks, and all get what it heard.
    """
    samples, cond = whole(x), jax.tree.map(whole, cond)
    values, error = np.full(len(samples), np.nan, precision(samples)), None
    if jax.process_index() == 0:
        try:
            values = np.asarray(reward(samples, cond), values.dtype)
        except Exception as caught:
            error = caught
    if jax.process_count() > 1:
        values = np.asarray(multihost_utils.broadcast_one_to_all(values))
    return values, error
