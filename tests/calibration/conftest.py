"""Shared by the tests of learned rows."""

import pytest
from pools import LINEAR, mixture, pool


@pytest.fixture(scope="session")
def pools():
    flow = mixture(LINEAR)
    return [pool(flow, seed, num) for seed, num in ((1, 128), (2, 64))]
