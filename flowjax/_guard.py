"""Refuses to import beside the other distribution that installs a package named `flowjax`.

The name `flowjax` on PyPI belongs to a different project with the same import name. Side by side, the files of one
replace or hide those of the other, and errors then appear far from their cause. This module imports only the standard
library and is imported before anything else.
"""

import importlib.metadata
from collections.abc import Callable

OURS = "flowjax-generative"
OTHER = "flowjax"


def check(find: Callable[[str], importlib.metadata.Distribution] = importlib.metadata.distribution) -> None:
    """Raises if the distribution named `flowjax` is installed.

    One look-up by name takes about 1 ms. `importlib.metadata.packages_distributions()` would find the same conflict by
    reading the file list of every installed distribution, which takes 200 ms in an environment with 150 of them.

    Args:
        find: Returns the distribution of a name or raises `PackageNotFoundError`.

    Raises:
        ImportError: The other distribution is installed; the message says where, and how to get out.
    """
    try:
        other = find(OTHER)
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"the distribution '{OTHER}' {other.version} in {other.locate_file('')} is another project that also installs "
        f"a package named 'flowjax'; the two cannot share an environment. Install '{OURS}' into a fresh one, or run "
        f"`pip uninstall {OTHER}` and then `pip install --force-reinstall --no-deps -e .` in the checkout of '{OURS}'."
    )


check()
