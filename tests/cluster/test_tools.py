"""The builder of other projects' programs: what is there is used, what is not is built once, from pins."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import build

GREETS = 'package main\n\nfunc main() { println("hello") }\n'


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a module in place of Kubernetes' that builds in a second."""
    for name in ("KUBEBUILDER_ASSETS", "SKOUTER_TOOLS"):
        monkeypatch.delenv(name, raising=False)
    module = tmp_path / "modules" / "greeter"
    (module / "greet").mkdir(parents=True)
    (module / "go.mod").write_text("module greeter\n\ngo 1.20\n")
    (module / "go.sum").write_text("")
    (module / "greet" / "main.go").write_text(GREETS)
    monkeypatch.setattr(build, "HERE", module.parent)
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(build, "SETS", {"greeter": build.Set("greeter", {"greet": "greeter/greet"})})
    return tmp_path


def program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_what_is_missing_is_built_and_then_found(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build.folder("greeter")
    assert "building greet" in capsys.readouterr().err
    assert subprocess.run([folder / "greet"], capture_output=True, text=True, check=True).stderr == "hello\n"
    assert build.folder("greeter") == folder
    assert capsys.readouterr().err == ""
    assert {path.name for path in folder.iterdir()} == {"greet", "lock"}


def test_another_pin_is_another_folder(tools: Path) -> None:
    folder = build.folder("greeter")
    (tools / "modules" / "greeter" / "go.sum").write_text("\n")
    assert build.folder("greeter") != folder


def test_two_runs_beside_each_other_build_once(tools: Path) -> None:
    code = f"""
from pathlib import Path
from tests.tools import build
build.HERE, build.CACHE = Path({str(tools / "modules")!r}), Path({str(tools / "cache")!r})
build.SETS = {{"greeter": build.Set("greeter", {{"greet": "greeter/greet"}})}}
print(build.folder("greeter"))
"""
    words = [sys.executable, "-c", code]
    runs = [subprocess.Popen(words, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert said[0][0] == said[1][0] != ""
    assert sorted("building" in errors for _, errors in said) == [False, True]


def test_what_does_not_compile_says_why_and_leaves_nothing(tools: Path) -> None:
    (tools / "modules" / "greeter" / "greet" / "main.go").write_text(
        "package main\n\nfunc main() { nothing() }\n"
    )
    with pytest.raises(build.ToolError, match="undefined: nothing"):
        build.folder("greeter")
    (folder,) = (tools / "cache").iterdir()
    assert {path.name for path in folder.iterdir()} == {"lock"}


def test_programs_that_are_there_come_first(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tools / "assets"
    program(assets / "greet")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert build.folder("greeter") == assets


def test_programs_that_are_not_all_there_are_told_and_not_used(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tools / "assets"))
    assert build.folder("greeter").parent == tools / "cache"
    assert "assets has no greet: not used" in capsys.readouterr().err


def test_what_setup_envtest_has_is_used(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools / "assets" / "greet")
    program(tools / "bin" / "setup-envtest")
    (tools / "bin" / "setup-envtest").write_text(
        f'#!/bin/sh\n[ "$*" = "use -i -p path" ] && echo {tools}/assets\n'
    )
    monkeypatch.setenv("PATH", f"{tools / 'bin'}:/usr/bin:/bin")
    assert build.folder("greeter") == tools / "assets"


@pytest.mark.parametrize("name", build.SETS)
def test_every_program_is_a_tool_of_its_module(name: str) -> None:
    """So that go.mod and go.sum pin all that it is built of."""
    wanted = build.SETS[name]
    pinned = (Path(build.__file__).parent / wanted.module / "go.mod").read_text()
    ours = re.search(r"^module (.*)$", pinned, re.MULTILINE)
    assert ours is not None
    for package in set(wanted.programs.values()) - {ours[1]}:
        assert re.search(rf"^(tool )?\s*{re.escape(package)}$", pinned, re.MULTILINE), package
