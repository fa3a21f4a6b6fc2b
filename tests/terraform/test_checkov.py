"""checkov finds nothing in the modules but what they themselves say is meant so, each with its reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.terraform.harness import ROOT
from tests.terraform.prepare import checkov


def test_checkov_is_content() -> None:
    """Offline: its rules are in it. Not the examples: their networks are the least that shows a module."""
    words = [checkov(), "-d", "terraform", "--framework", "terraform", "--skip-path", "examples"]
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
