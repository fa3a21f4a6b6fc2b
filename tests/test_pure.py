"""The pure core stays pure: no I/O, no clock, no other room of the house, and cheap to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

GATEWAY = Path(__file__).parent.parent / "gateway"
PURE = (
    *("policies.cel", "policies.names", "policies.patterns", "policies.schema", "kubernetes.crds"),
    *("policies.addresses", "policies.records", "policies.yaml_nodes", "policies.reading"),
    *("policies.documents", "kubernetes.cluster", "policies.selection", "policies.policy"),
    *("policies.services", "policies.dfa", "policies.tables", "policies.explain"),
    *("gateway_settings", "settings", "route_settings", "plan", "report", "journal"),
    *("kubernetes.api_objects", "kubernetes.conditions", "kubernetes.pod_events", "metrics"),
    *("kubernetes.api_rights", "kubernetes.kubelet", "groups", "kubernetes.pods", "kubernetes.node_plan"),
    *("unbound", "machines", "peers.facts", "peers.dumps"),
)  # each may import those before it
LATE = ("dns_messages", "peers.sealing")  # pure too, but imported when needed: what they import is heavy

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
            is_package = base == "gateway" or (GATEWAY / base.removeprefix("gateway.")).is_dir()
            found.update(f"{base}.{a.name}" for a in node.names) if is_package else found.add(base)
    return found


def tree_of(name: str) -> ast.AST:
    return ast.parse((GATEWAY / f"{name.replace('.', '/')}.py").read_text())


@pytest.mark.parametrize("name", [*PURE, *LATE])
def test_imports_no_io_no_clock_and_no_shell(name: str) -> None:
    for module in imports(tree_of(name)):
        assert module.split(".")[0] in ALLOWED, f"{name}.py imports {module}"
        if module.startswith("gateway"):
            assert module.removeprefix("gateway.") in PURE, f"{name}.py imports {module}, which is not pure"


@pytest.mark.parametrize("name", [*PURE, *LATE])
def test_calls_nothing_that_reads_or_writes(name: str) -> None:
    tree = tree_of(name)
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & FORBIDDEN_CALLS


@pytest.mark.parametrize(
    "source",
    [
        *("import os", "from time import monotonic", "import gateway.agent", "from gateway import agent"),
        *("from gateway.kubernetes import source", "import gateway.kubernetes.source"),
    ],
)
def test_the_check_itself_would_notice(source: str) -> None:
    (module,) = imports(ast.parse(source))
    assert module.split(".")[0] not in ALLOWED or module.removeprefix("gateway.") not in PURE


DOORS = {"kubernetes": {"kubernetes/api_server.py"}, "urllib3": {"kubernetes/api_server.py", "cloud/http.py"}}


@pytest.mark.parametrize("library", DOORS)
def test_one_file_alone_knows_the_client_of_an_api(library: str) -> None:
    found = {
        f"{path.parent.name}/{path.name}"
        for room in ("bpf", "gateway", "routing")
        for path in (GATEWAY.parent / room).rglob("*.py")
        if library in {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
    }
    assert found == DOORS[library]


def test_arrows_go_one_way() -> None:
    for name in PURE:
        for module in imports(tree_of(name)):
            if module.startswith("gateway."):
                assert PURE.index(module.removeprefix("gateway.")) < PURE.index(name), (
                    f"{name}.py imports {module}"
                )


def test_importing_the_core_loads_nothing_heavy() -> None:
    core = ", ".join(f"gateway.{name}" for name in PURE)
    code = f"import sys, {core}; print(*set({HEAVY}) & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=GATEWAY.parent, capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("", "")
