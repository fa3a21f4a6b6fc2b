"""What people apply, as objects: the kustomize base by kubectl, the chart by helm, without a server."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "skouter"
NAMESPACE = "skouter-system"
KUBERNETES = "1.31"  # the oldest that the chart takes

Object = dict[str, Any]
Key = tuple[str, str]  # kind, name


class RenderError(Exception):
    """What the program said."""


def template(helm: Path, *words: object, values: str = "", version: str = KUBERNETES) -> str:
    """What `helm template` prints, without the hooks; `values` are YAML."""
    told = ["--namespace", NAMESPACE, "--kube-version", version, "--values", "-"]
    return _run([helm, "template", "skouter", CHART, *told, *words], values)


def kustomized(kubectl: Path, folder: str = "base") -> str:
    return _run([kubectl, "kustomize", DEPLOY / "kustomize" / folder])


def objects(text: str) -> dict[Key, Object]:
    found = [each for each in yaml.safe_load_all(text) if each]
    named = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(named) == len(found), "two objects of one name"
    return named


def daemonset(text: str) -> Object:
    return objects(text)["DaemonSet", "skouter"]


def agent(text: str) -> Object:
    """The agent's container."""
    (container,) = daemonset(text)["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _run(words: list[Any], text: str = "") -> str:
    done = subprocess.run(list(map(str, words)), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout
