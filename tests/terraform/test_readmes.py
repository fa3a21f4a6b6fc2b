"""What the READMEs of modules say of inputs, outputs and examples is what there is."""

import re

import pytest

from tests.terraform import tables
from tests.terraform.harness import MODULES, ROOT

TERRAFORM = ROOT / "terraform"


@pytest.mark.parametrize("name", MODULES)
def test_a_readme_is_as_it_would_be_written(name: str) -> None:
    mend = "python -m tests.terraform.tables"
    assert (TERRAFORM / name / "README.md").read_text() == tables.written(TERRAFORM / name), mend


@pytest.mark.parametrize("name", MODULES)
def test_each_input_and_output_is_described(name: str) -> None:
    for file, kind in (("variables.tf", "variable"), ("outputs.tf", "output")):
        text = (TERRAFORM / name / file).read_text()
        found = tables.blocks(text)[kind]
        assert len(found) == len(re.findall(rf'^{kind} "', text, re.MULTILINE))
        assert all(arguments.get("description") for arguments in found.values())


def test_what_is_the_same_has_the_same_name_and_type() -> None:
    """Every input of boot that a cloud's module has too is written as boot has it."""
    boot = tables.blocks((TERRAFORM / "boot" / "variables.tf").read_text())["variable"]
    for cloud in MODULES[1:]:
        its = tables.blocks((TERRAFORM / cloud / "variables.tf").read_text())["variable"]
        for name in its.keys() & boot.keys() - {"dns"}:  # whose upstreams have each cloud's default
            assert its[name]["type"] == boot[name]["type"], (cloud, name)
            assert its[name].get("default") == boot[name].get("default"), (cloud, name)


@pytest.mark.parametrize("name", MODULES)
def test_names_in_a_readme_exist(name: str) -> None:
    text = (TERRAFORM / name / "README.md").read_text().partition("## ")[0]
    known = "".join(path.read_text() for path in (TERRAFORM / name).glob("*.tf"))
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)) - {
        "connection_persistence_on_unhealthy_backends"
    }
    assert not {word for word in named if word not in known}
