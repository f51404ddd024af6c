"""Accelerators by name, with what their makers publish of them, and topologies such as v5e:4x4 or h100x8."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from flowjax._checks import choose


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as the makers' data sheets describe it.

    Attributes:
        memory: Bytes that it has.
        flops: Products and sums in bfloat16, a second, dense.
        bandwidth: Bytes a second between its memory and its units.
        network: Bytes a second that it sends to the other devices of its slice or host, over all links.
        tpu: Whether programs can be compiled for it here.

    Example:
        >>> from flowjax.planning.hardware import CHIPS
        >>> CHIPS["v5e"].flops / CHIPS["v5e"].bandwidth > 200  # products for each byte that is read
        True
    """

    memory: float
    flops: float
    bandwidth: float
    network: float
    tpu: bool


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1.2e12, 300e9, True),
    "v5e": Chip(16 * 2**30, 197e12, 0.81e12, 200e9, True),
    "v5p": Chip(95 * 2**30, 459e12, 2.765e12, 600e9, True),
    "v6e": Chip(32 * 2**30, 918e12, 1.64e12, 400e9, True),
    "a100": Chip(80e9, 312e12, 2.039e12, 300e9, False),
    "h100": Chip(80e9, 989e12, 3.35e12, 450e9, False),
    "h200": Chip(141e9, 989e12, 4.8e12, 450e9, False),
    "b200": Chip(180e9, 2250e12, 8.0e12, 900e9, False),
}
RESERVED = 0.05  # of the memory, for the runtime and for what does not fit without gaps
LARGEST = 65536  # devices
_NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
_NO_TPU |= {"TPU_WORKER_ID": "0", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many devices of a kind, and how they are connected.

    Attributes:
        name: As it was asked for.
        chip: Of which kind.
        shape: Devices along each direction.

    Example:
        >>> from flowjax.planning import parse
        >>> parse("v5e:16x16").count, parse("h100x8").chip.tpu
        (256, False)
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    def devices(self) -> list[Any]:
        """Devices to compile for: of this kind for TPUs; for GPUs as many of this machine's CPU, as a stand-in.

        Raises:
            ValueError: libtpu is missing or does not know this topology, or there are too few CPU devices.
        """
        if not self.chip.tpu:
            found = jax.devices("cpu")
            if len(found) < self.count:
                raise ValueError(f"{self.name} needs {self.count} CPU devices as a stand-in, and JAX has {len(found)}")
            return list(found[: self.count])
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                f"{self.name} is compiled by libtpu, which is not installed: pip install "
                '"flowjax-generative[tpu-plan]", or ask for a GPU such as h100x8'
            )
        from jax.experimental import topologies

        # Nobody is to be asked whether this is a TPU host, and libtpu need not say that it is none.
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name).devices)
        except Exception as error:  # a different one in each version
            raise ValueError(f"libtpu does not know the topology {self.name}: {error}") from error


def parse(name: str) -> Topology:
    """The topology of a name: CHIP:AxB or CHIP:AxBxC for TPUs, CHIPxN for GPUs.

    Raises:
        ValueError: It is none.
    """
    known = re.match(r"([a-z]+\d*[a-wyz]*)([:x]?)(.*)", name)
    kind, separator, sides = known.groups() if known else (name, "", "")
    chip = CHIPS[choose("accelerator", kind, CHIPS)]
    if not re.fullmatch(r"\d{1,5}(x\d{1,5}){0,2}", sides) or separator != (":" if chip.tpu else "x"):
        example = f"{kind}:2x4" if chip.tpu else f"{kind}x8"
        raise ValueError(f"a topology of {kind} is written like {example}, got {name!r}")
    shape = tuple(map(int, sides.split("x")))
    if not 1 <= math.prod(shape) <= LARGEST or (not chip.tpu and len(shape) > 1):
        raise ValueError(f"{name} must have 1 to {LARGEST} devices{'' if chip.tpu else ', written as one number'}")
    return Topology(name, chip, shape)
