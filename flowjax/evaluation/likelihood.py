"""Negative log-likelihood of data under any density."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from flowjax import _checks
from flowjax.evaluation import estimates


def negative_log_likelihood(
    log_prob: Callable[[Float[np.ndarray, "B ..."]], Any],
    x: Num[np.ndarray, "N ..."],
    *,
    shift: float = 0.0,
    scale: float = 1.0,
    block: int = 200,
) -> estimates.Estimate:
    """Mean negative log-likelihood of data in nats per example, in the data's own scale.

    Args:
        log_prob: Normalised float32 examples (B, ...) to the logarithm of their density (B,); B is always `block`.
        x: Data in its own scale, N >= 2. Integers need uniform noise added before.
        shift: Normalised data = (x - shift) / scale.
        scale: See `shift`; its logarithm is added once per number, so values do not depend on the normalisation.
        block: Examples per call.

    Raises:
        ValueError: Fewer than two examples, numbers that are not finite, a scale or block that is not positive, or a
            density that is not finite and positive, or not one for each example.
    """
    _checks.real("(-inf, inf)", shift=shift)
    _checks.real("(0, inf)", scale=scale)
    _checks.whole(_checks.COUNT, block=block)
    estimates.rows(x)
    found = []
    for start in range(0, len(x), block):
        rows = np.asarray(x[start : start + block], np.float64)
        normal = np.resize((rows - shift) / scale, (block, *rows.shape[1:])).astype(np.float32)
        logs = np.asarray(log_prob(normal), np.float64)
        if logs.shape != (block,):
            raise ValueError(f"log_prob gives one number for each of {block} examples, got {logs.shape}")
        found.append(logs[: len(rows)])
    size = int(np.prod(x.shape[1:]))
    return estimates.mean(size * np.log(scale) - np.concatenate(found))


def bits_per_dimension(nats: estimates.Estimate, size: int) -> estimates.Estimate:
    """Nats per example to bits per number.

    Args:
        nats: From `negative_log_likelihood`.
        size: Numbers in an example, for images height x width x channels.

    Raises:
        ValueError: size is not positive.
    """
    _checks.whole(_checks.COUNT, size=size)
    return estimates.Estimate(*(value / (size * float(np.log(2))) for value in nats))
