"""A lab with Skouter on its three gateways, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.gates import POLICIES, Gates, gated
from tests.gateway.lab import GatewayLab


@pytest.fixture(scope="module")
def policies() -> str:
    """What the gateways hold machines to; a file may have its own."""
    return POLICIES


@pytest.fixture(scope="module")
def gates(lab_tools: None, policies: str) -> Iterator[Gates]:
    with GatewayLab() as built, gated(built, policies) as made:
        yield made


@pytest.fixture(scope="module")
def lab(gates: Gates) -> GatewayLab:
    return gates.lab
