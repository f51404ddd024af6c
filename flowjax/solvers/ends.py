"""Where a method is undefined at an end of its times: the messages that say which end to move."""

import numpy as np

from flowjax.paths.base import GaussianPath


def check_noise_left(path: GaussianPath, times: list[float]) -> None:
    """Raises ValueError if an inversion starts at sigma = 0, where the data prediction says nothing of the noise."""
    if times[0] > times[-1] and path.sigma(times[0]) == 0:
        raise ValueError(
            f"an inversion cannot start at t = {times[0]:g}, where sigma = 0 and the data prediction says nothing of "
            f"the noise: move the start of the times, e.g. flowjax.times.uniform(n, end=1 - 1e-3)[::-1], or take a "
            "method of the velocity (Euler, Heun, RK4, AdamsBashforth)"
        )


def check_positive_alpha(path: GaussianPath, times: list[float], what: str) -> None:
    """Raises ValueError, naming the end to move, if alpha is zero on the grid."""
    for end, t in (("start", times[0]), ("end", times[-1])):
        if path.alpha(t) == 0:
            raise ValueError(f"{what} needs alpha > 0, but alpha({t:g}) = 0: move the {end} of the times")


def check_ends(path: GaussianPath, times: list[float], form: str, what: str) -> None:
    """Raises ValueError if a method of this form is undefined where the grid begins or ends."""
    if form == "noise":
        check_finite_lam(path, times, f"the noise form of {what}")
    else:
        check_noise_left(path, times)


def check_finite_lam(path: GaussianPath, times: list[float], what: str) -> None:
    """Raises ValueError, naming the end to move, if lam is infinite on the grid."""
    for end, t in (("start", times[0]), ("end", times[-1])):
        inside = "above" if t == min(times) else "below"
        if not np.isfinite(path.lam(t)):
            raise ValueError(
                f"{what} needs a finite lam = log(alpha/sigma), but lam({t:g}) = {float(path.lam(t))}: "
                f"move the {end} of the times {inside} {t:g}, or use the data form"
            )
