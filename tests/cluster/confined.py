"""Runs a command with what a pod's manifest leaves it: capabilities, system calls, folders, namespaces.

confined.py POD FOLDERS COMMAND: POD is a file with the pod's spec as JSON, FOLDERS (JSON) maps the manifest's
folders to those that stand for them here. It is started in a mount and a cgroup namespace of its own, as a
container is; the host's network and processes are the caller's.

RuntimeDefault is the profile of Debian's golang-github-containers-common, which CRI-O ships; containerd's
differs in no call that is made here.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import seccomp

PROFILE = Path("/usr/share/containers/seccomp.json")
COMPARE = {"SCMP_CMP_EQ": seccomp.EQ, "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ}


def forbid_system_calls(capabilities: set[str]) -> None:
    """The profile as a runtime applies it to a container with these capabilities."""
    profile = json.loads(PROFILE.read_text())
    rules = seccomp.SyscallFilter(_action(profile["defaultAction"], profile.get("defaultErrnoRet")))
    for rule in profile["syscalls"]:
        if not _applies(rule, capabilities):
            continue
        arguments = [_argument(each) for each in rule.get("args") or ()]
        for name in rule["names"]:
            try:
                rules.add_rule(_action(rule["action"], rule.get("errnoRet")), name, *arguments)
            except (RuntimeError, ValueError, OSError):
                continue  # of another architecture, or what is done anyway
    rules.load()


def _action(name: str, number: int | None) -> int:
    if name == "SCMP_ACT_ALLOW":
        return int(seccomp.ALLOW)
    assert name == "SCMP_ACT_ERRNO", name
    return int(seccomp.ERRNO(number or errno.EPERM))


def _applies(rule: dict[str, Any], capabilities: set[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not set(includes.get("caps") or ()) <= capabilities or set(excludes.get("caps") or ()) & capabilities:
        return False
    return "amd64" in includes.get("arches", ["amd64"])


def _argument(told: dict[str, Any]) -> Any:
    return seccomp.Arg(told["index"], COMPARE[told["op"]], told["value"], told.get("valueTwo") or 0)


def mount_volumes(pod: dict[str, Any], folders: dict[str, str]) -> None:
    """Only its volumes can be written to."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    kinds = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in pod["containers"][0]["volumeMounts"]:
        volume = kinds[mount["name"]]
        folder = folders.get(mount["mountPath"], mount["mountPath"])
        if "emptyDir" in volume:
            Path(folder).mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        elif "hostPath" in volume:
            assert volume["hostPath"]["path"] == mount["mountPath"]
            Path(folder).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", folder, folder], check=True)
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)
    for path in ("/proc/sys", "/sys", "/tmp", "/dev/shm"):
        if os.path.ismount(path):
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def main(pod: str, folders: str, *command: str) -> None:
    spec = json.loads(Path(pod).read_text())
    mount_volumes(spec, json.loads(folders))
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    names = context["capabilities"]["add"]
    kept = ",".join(f"+{name.lower()}" for name in names)
    keep = ["--bounding-set", f"-all,{kept}", "--inh-caps", "-all", "--pdeathsig", "KILL"]
    if not context["allowPrivilegeEscalation"]:
        keep.append("--no-new-privs")
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    forbid_system_calls({f"CAP_{name}" for name in names})
    os.execvp("setpriv", ["setpriv", *keep, "--", *_prefix(spec["containers"][0]["command"]), *command])


def _prefix(words: list[str]) -> list[str]:
    """What the manifest runs the agent by. The caller stands for the node's first process, whose namespaces
    are not everywhere shown to a test."""
    found = words[: words.index("skouter")]
    return [word.replace("--target=1", f"--target={os.getppid()}") for word in found]


if __name__ == "__main__":
    main(*sys.argv[1:])
