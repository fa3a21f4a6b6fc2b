"""The pure core stays pure: no I/O, no clock, no other room of the house, and cheap to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

GATEWAY = Path(__file__).parent.parent / "gateway"
PURE = (
    *("cel", "names", "patterns", "schema", "crds", "addresses", "records", "yaml_nodes", "reading"),
    *("documents", "cluster", "selection", "policy", "services", "dfa", "tables", "explain"),
    *("gateway_settings", "settings", "route_settings"),
    *("plan", "report", "journal", "api_objects", "conditions", "pod_events", "metrics", "api_rights"),
    *("kubelet", "groups", "pods", "node_plan", "unbound", "machines", "facts", "dumps"),
)  # each may import those before it
LATE = ("dns_messages", "sealing")  # pure too, but imported when they are needed: what they import is heavy

ALLOWED = {
    *(
        "__future__",
        "ast",
        "collections",
        "base64",
        "contextlib",
        "dataclasses",
        "difflib",
        "functools",
        "hashlib",
        "ipaddress",
        "json",
        "fnmatch",
    ),
    *("itertools", "re", "typing", "enum", "gateway", "automata", "idna", "jsonschema", "re2", "yaml"),
    *("prometheus_client", "dnslib", "cryptography", "struct"),
}
FORBIDDEN_CALLS = {"open", "print", "input", "__import__", "exec", "eval", "breakpoint"}
HEAVY = (
    "automata",
    "bcc",
    "cryptography",
    "difflib",
    "dnslib",
    "idna",
    "jsonschema",
    "networkx",
    "prometheus_client",
    "re2",
    "trio",
    "yaml",
)


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found.update(f"gateway.{a.name}" for a in node.names) if base == "gateway" else found.add(base)
    return found


@pytest.mark.parametrize("name", [*PURE, *LATE])
def test_imports_no_io_no_clock_and_no_shell(name: str) -> None:
    for module in imports(ast.parse((GATEWAY / f"{name}.py").read_text())):
        assert module.split(".")[0] in ALLOWED, f"{name}.py imports {module}"
        if module.startswith("gateway"):
            assert module.split(".")[1] in PURE, f"{name}.py imports {module}, which is not pure"


@pytest.mark.parametrize("name", [*PURE, *LATE])
def test_calls_nothing_that_reads_or_writes(name: str) -> None:
    tree = ast.parse((GATEWAY / f"{name}.py").read_text())
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & FORBIDDEN_CALLS


@pytest.mark.parametrize(
    "source", ["import os", "from time import monotonic", "import gateway.agent", "from gateway import agent"]
)
def test_the_check_itself_would_notice(source: str) -> None:
    (module,) = imports(ast.parse(source))
    parts = module.split(".")
    assert parts[0] not in ALLOWED or parts[1] not in PURE


@pytest.mark.parametrize("library", ["kubernetes", "urllib3"])
def test_one_file_alone_knows_the_client_of_the_api_server(library: str) -> None:
    found = {
        path.name
        for path in GATEWAY.parent.glob("[bgr]*/*.py")
        if library in {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
    }
    assert found == {"api_server.py"}


def test_arrows_go_one_way() -> None:
    for name in PURE:
        for module in imports(ast.parse((GATEWAY / f"{name}.py").read_text())):
            if module.startswith("gateway."):
                assert PURE.index(module.split(".")[1]) < PURE.index(name), f"{name}.py imports {module}"


def test_importing_the_core_loads_nothing_heavy() -> None:
    code = f"import sys; from gateway import {', '.join(PURE)}; print(*set({HEAVY}) & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=GATEWAY.parent, capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("", "")
