"""What README.md says is run, so that it stays true."""

import re
from pathlib import Path

import pytest

from gateway import settings
from gateway.__main__ import parser
from gateway.policies import documents

README = (Path(__file__).parent.parent / "README.md").read_text()


BLOCKS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("policy", [block for block in BLOCKS if "apiVersion" in block])
def test_the_policies_of_the_readme_are_good_documents(policy: str) -> None:
    objects, problems = documents.read(policy, "README.md")
    assert objects
    assert not problems


def test_the_configuration_of_the_readme_is_a_good_one() -> None:
    (config,) = [block for block in BLOCKS if "apiVersion" not in block]
    read, problems = settings.read(config, "README.md")
    assert read
    assert not problems


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`skouter (\w+(?: check| explain)?)", README))))
def test_each_command_of_the_readme_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: skouter")


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"make ([\w-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_files_of_the_readme_exist() -> None:
    root = Path(__file__).parent.parent
    there = [path for room in ("bpf", "gateway", "routing") for path in (root / room).rglob("*")]
    for name in set(re.findall(r"`([\w/]+\.(?:py|h|c))`", README)):
        assert any(path.match(name) for path in there), name
