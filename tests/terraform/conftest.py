"""What tests of Terraform share: programs, and servers that answer for the providers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terraform import harness, provider


@pytest.fixture(scope="session")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What tells Terraform where providers are that know their schemas."""
    with provider.serving(harness.used_schemas(), tmp_path_factory.mktemp("providers")) as variables:
        yield variables


@pytest.fixture(scope="session", params=harness.programs(), ids=lambda path: Path(path).name)
def terraform(
    request: pytest.FixtureRequest, attached: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> harness.Terraform:
    return harness.Terraform(request.param, attached, tmp_path_factory.mktemp("data"))
