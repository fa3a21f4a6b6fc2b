"""Each module is well-formed, fits its provider's true schema, and passes its own tests."""

import re
from pathlib import Path

import pytest

from tests.terraform import schemas
from tests.terraform.harness import MODULES, ROOT, Terraform, version

EXAMPLES = ("examples/aws", "examples/google", "examples/azure")


def test_it_is_new_enough(terraform: Terraform) -> None:
    assert version(terraform.program) >= (1, 11)


def test_everything_is_formatted(terraform: Terraform) -> None:
    done = terraform.run(ROOT / "terraform", "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*MODULES, *EXAMPLES])
def test_a_module_is_valid_and_passes_its_tests(terraform: Terraform, name: str) -> None:
    folder = ROOT / "terraform" / name
    terraform.init(folder)
    done = terraform.run(folder, "validate", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    terraform.tested(folder)


def test_a_misspelled_argument_is_found(terraform: Terraform, tmp_path: Path) -> None:
    """So the schemas are true ones: nothing else here would tell if they accepted everything."""
    (tmp_path / "main.tf").write_text(
        'terraform {\n  required_providers {\n    aws = { source = "hashicorp/aws" }\n  }\n}\n'
        'resource "aws_route" "x" {\n  route_table_id = "rtb-1"\n  network_interface = "eni-1"\n}\n'
    )
    terraform.init(tmp_path)
    done = terraform.run(tmp_path, "validate", "-no-color")
    assert done.returncode == 1
    assert 'An argument named "network_interface" is not expected here' in done.stdout + done.stderr


@pytest.mark.parametrize("cloud", ["aws", "google", "azure"])
def test_a_module_accepts_the_provider_whose_schema_it_is_tested_with(cloud: str) -> None:
    text = (ROOT / "terraform" / cloud / "versions.tf").read_text()
    found = re.search(r'source  = "hashicorp/(\w+)"\n\s+version = ">= ([\d.]+), < ([\d.]+)"', text)
    assert found
    tested = _numbers(schemas.pins()[found[1]].provider)
    assert _numbers(found[2]) <= tested < _numbers(found[3])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
