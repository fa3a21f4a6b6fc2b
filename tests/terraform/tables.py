"""`python -m tests.terraform.tables` writes the inputs, outputs and examples of modules into their READMEs.

Rules this file obeys:

- What stands between two markers is written here, and nothing else is touched; a test compares.
- The files read are as `fmt` leaves them: a block begins at a line's beginning, its arguments two spaces in.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.terraform.harness import MODULES, ROOT

BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}\n', re.MULTILINE | re.DOTALL)
ARGUMENT = re.compile(r"^  (\w+) += (.*(?:\n    .*|\n  [})\]].*)*)", re.MULTILINE)
MARKED = "<!-- {0}: written by python -m tests.terraform.tables -->\n{1}<!-- end of {0} -->\n"


def blocks(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """Of "variable" and "output": by name, the arguments as they are written."""
    found: dict[str, dict[str, dict[str, str]]] = {"variable": {}, "output": {}}
    for kind, name, body in BLOCK.findall(text):
        found[kind][name] = dict(ARGUMENT.findall(body))
    return found


def inputs(text: str) -> str:
    lines = ["| input | what | type | default |", "| --- | --- | --- | --- |"]
    for name, arguments in blocks(text)["variable"].items():
        default = f"`{_line(arguments['default'])}`" if "default" in arguments else "required"
        what = arguments["description"].strip('"')
        lines.append(f"| `{name}` | {what} | `{_line(arguments['type'])}` | {default} |")
    return "\n".join(lines) + "\n"


def outputs(text: str) -> str:
    lines = ["| output | what |", "| --- | --- |"]
    for name, arguments in blocks(text)["output"].items():
        what = arguments["description"].strip('"')
        lines.append(f"| `{name}` | {what} |")
    return "\n".join(lines) + "\n"


def _line(value: str) -> str:
    return re.sub(
        r"([({[]) | ,?([)}\]])", r"\1\2", re.sub(r"\s+", " ", re.sub(r"\n +(?=\w)", ", ", value))
    ).replace("{, ", "{")


def written(module: Path) -> str:
    """The module's README.md as it should be."""
    text = (module / "README.md").read_text()
    parts = {
        "inputs": inputs((module / "variables.tf").read_text()),
        "outputs": outputs((module / "outputs.tf").read_text()),
    }
    example = ROOT / "terraform" / "examples" / module.name / "main.tf"
    if example.exists():
        parts["example"] = f"```hcl\n{example.read_text()}```\n"
    for name, part in parts.items():
        pattern = re.escape(MARKED.format(name, "@")).replace("@", ".*?")
        made, count = re.subn(pattern, lambda _, n=name, p=part: MARKED.format(n, p), text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{module / 'README.md'} has no place for {name}:\n{MARKED.format(name, '')}")
        text = made
    return text


if __name__ == "__main__":
    for folder in (ROOT / "terraform" / name for name in MODULES):
        (folder / "README.md").write_text(written(folder))
