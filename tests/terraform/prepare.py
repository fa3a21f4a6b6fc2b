"""`python -m tests.terraform.prepare` fetches, once, what the tests of Terraform would else wait for."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys

from tests.terraform import schemas
from tests.tools.build import CACHE, say

CHECKOV = "3.3.30"


def checkov() -> str:
    """The program of the PATH, else one in a venv of its own, for what it needs is much: installed once."""
    if found := shutil.which("checkov"):
        return found
    folder = CACHE / f"checkov-{CHECKOV}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            say(f"installing checkov {CHECKOV} into {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "pip", "install", "--quiet", f"checkov=={CHECKOV}"]
            subprocess.run(pip, check=True)
            (folder / "whole").touch()
    return str(folder / "bin" / "checkov")


if __name__ == "__main__":
    for name in schemas.pins():
        print(schemas.path(name))
    print(checkov())
