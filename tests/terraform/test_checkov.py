"""checkov finds nothing in the modules but what they themselves say is meant so, each with its reason."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.terraform.harness import ROOT
from tests.tools.build import CACHE

VERSION = "3.3.30"


def program() -> str:
    """That of the PATH, else one in a venv of its own, for what it needs is much: installed once."""
    if found := shutil.which("checkov"):
        return found
    folder = CACHE / f"checkov-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "pip", "install", "--quiet", f"checkov=={VERSION}"]
            subprocess.run(pip, check=True)
            (folder / "whole").touch()
    return str(folder / "bin" / "checkov")


def test_checkov_is_content() -> None:
    """Offline: its rules are in it. Not the examples: their networks are the least that shows a module."""
    words = [program(), "-d", "terraform", "--framework", "terraform", "--skip-path", "examples"]
    words += ["--skip-download", "--output", "json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["results"]
    assert [(check["check_id"], check["resource"]) for check in found["failed_checks"]] == []
    assert len(found["passed_checks"]) > 50
    assert all(check["check_result"]["suppress_comment"] for check in found["skipped_checks"])
    assert {Path(check["file_path"]).parts[1] for check in found["passed_checks"]} == {
        "aws",
        "google",
        "azure",
    }
