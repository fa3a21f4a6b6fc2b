"""Policies from files: read whole, followed as they change, the last good set kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.source_files import PolicyFiles, Texts, keep, kept, understand

CONFIG = "floor: 10\n"


def policy(name: str = "web", domain: str = "example.com") -> str:
    return f"""
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {{name: {name}}}
spec:
  nodeSelector: {{}}
  rules: [{{domains: [{domain}]}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "web.yaml").write_text(policy())
    return made


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> Iterator[PolicyFiles]:
    made = PolicyFiles(folder, tmp_path / "agent.yaml")
    yield made
    made.close()


def names(texts: Texts) -> list[str]:
    return [Path(path).name for path, _ in texts.policies]


# ---- Reading ----------------------------------------------------------------------------------------------


def test_all_policies_and_no_other_files(files: PolicyFiles, folder: Path) -> None:
    (folder / "b.yml").write_text(policy("b"))
    (folder / "c.json").write_text(json.dumps({"kind": "ClusterEgress"}, indent="\t"))
    for other in (".hidden.yaml", "web.yaml~", ".web.yaml.swp", "README", "4913"):
        (folder / other).write_text("[")
    (folder / "folder.yaml").mkdir()
    texts, problems = files.read()
    assert names(texts) == ["b.yml", "c.json", "web.yaml"]
    assert texts.config is None
    assert not problems


def test_json_is_read_as_it_is_indented(folder: Path) -> None:
    spec = {"nodeSelector": {}, "rules": [{"domains": ["*.example.com"]}]}
    document = {
        "apiVersion": "egress.skouter/v1alpha1",
        "kind": "ClusterEgress",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    found, problems = understand(Texts(policies=(("a.json", json.dumps(document, indent=2)),)), "agent.yaml")
    assert not problems
    assert found
    assert [str(item) for item in found.objects] == ["ClusterEgress a"]


def test_an_empty_folder_is_a_problem_not_an_empty_policy(files: PolicyFiles, folder: Path) -> None:
    (folder / "web.yaml").unlink()
    _, (problem,) = files.read()
    assert str(problem) == (
        f"{folder}: holds no policy (*.yaml, *.yml, *.json); "
        "write one; to end all enforcement run skouter off"
    )


def test_what_can_not_be_read_is_told_by_file(files: PolicyFiles, folder: Path, tmp_path: Path) -> None:
    (folder / "a.yaml").write_bytes(b"\xff")
    (folder / "b.yaml").symlink_to("nowhere")
    (folder / "c.yaml").write_text("#" * (5 << 20))
    (tmp_path / "agent.yaml").mkdir()
    _, problems = files.read()
    assert [str(problem).removeprefix(f"{folder}/").partition(";")[0] for problem in problems] == [
        "a.yaml: not utf-8 text",
        "b.yaml: no such file or directory",
        "c.yaml: is larger than 4194304 bytes",
        f"{tmp_path}/agent.yaml: is a directory",
    ]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    files = PolicyFiles(tmp_path / "nowhere" / "policies", tmp_path / "agent.yaml")
    _, (problem,) = files.read()
    files.close()
    assert str(problem) == (
        f"{tmp_path}/nowhere/policies: no such file or directory; make the folder, or name another"
    )


# ---- Understanding ----------------------------------------------------------------------------------------


def test_one_problem_anywhere_is_no_set_at_all() -> None:
    texts = Texts("flor: 1", (("a.yaml", policy("a")), ("b.yaml", "[")))
    found, problems = understand(texts, "agent.yaml")
    assert found is None
    assert [str(problem).split(":")[0] for problem in problems] == ["agent.yaml", "b.yaml"]


def test_two_files_do_not_name_the_same_object() -> None:
    found, (problem,) = understand(Texts(policies=(("a.yaml", policy()), ("b.yaml", policy()))), "agent.yaml")
    assert found is None
    assert str(problem) == (
        "b.yaml: ClusterEgress web: metadata.name: is the name of an object in a.yaml too; write another name"
    )


def test_a_configuration_that_vanishes_is_not_the_defaults() -> None:
    policies = (("a.yaml", policy()),)
    assert understand(Texts(None, policies), "agent.yaml", Texts(None, policies))[0]
    assert understand(Texts("", policies), "agent.yaml", Texts(CONFIG, policies))[0]
    found, (problem,) = understand(Texts(None, policies), "agent.yaml", Texts(CONFIG, policies))
    assert found is None
    assert str(problem) == "agent.yaml: is gone; restore it; an empty file is the defaults"


def test_the_last_good_set_is_kept_whole(tmp_path: Path) -> None:
    path, texts = tmp_path / "state" / "good.json", Texts(CONFIG, (("a.yaml", policy()),))
    assert kept(path) is None
    keep(path, texts)
    assert kept(path) == texts
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:-5])
    assert kept(path) is None


# ---- Following --------------------------------------------------------------------------------------------


def write_in_place(folder: Path) -> None:
    (folder / "web.yaml").write_text(policy("changed"))


def write_another(folder: Path) -> None:
    (folder / "other.yaml").write_text(policy("other"))


def rename_over(folder: Path) -> None:
    (folder / ".web.yaml.swp").write_text(policy("changed"))
    (folder / ".web.yaml.swp").rename(folder / "web.yaml")


def remove(folder: Path) -> None:
    (folder / "web.yaml").unlink()


def link(folder: Path) -> None:
    (folder / "linked.yaml").symlink_to("web.yaml")


def replace_the_folder(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.mkdir()
    (folder / "new.yaml").write_text(policy("new"))


def configure(folder: Path) -> None:
    (folder.parent / "agent.yaml").write_text(CONFIG)


def until_changed(files: PolicyFiles, act: Callable[[], None], seconds: float = 5) -> None:
    """`act` happens while `changed` waits; fails if that is not told."""

    async def main() -> None:
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(files.changed)
                await trio.testing.wait_all_tasks_blocked()
                await trio.to_thread.run_sync(act)

    trio.run(main)


@pytest.mark.parametrize(
    "act", [write_in_place, write_another, rename_over, remove, link, replace_the_folder, configure]
)
def test_a_change_is_seen(files: PolicyFiles, folder: Path, act: Callable[[Path], None]) -> None:
    before, _ = files.read()
    until_changed(files, lambda: act(folder))
    assert files.read()[0] != before
    until_changed(files, lambda: write_another(folder))  # and the next one, too


def test_a_change_between_reading_and_waiting_is_seen(files: PolicyFiles, folder: Path) -> None:
    files.read()
    write_in_place(folder)
    until_changed(files, lambda: None)


def test_the_links_of_a_mounted_ConfigMap_are_swapped_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    for version in ("..1", "..2"):
        (folder / version).mkdir(parents=True)
        (folder / version / "web.yaml").write_text(policy(f"v{version[2]}"))
    (folder / "..data").symlink_to("..1")
    (folder / "web.yaml").symlink_to("..data/web.yaml")
    files = PolicyFiles(folder, tmp_path / "agent.yaml")
    before, problems = files.read()
    assert not problems

    def swap() -> None:
        (folder / "..data_tmp").symlink_to("..2")
        (folder / "..data_tmp").rename(folder / "..data")

    until_changed(files, swap)
    after, _ = files.read()
    files.close()
    assert ("name: v1" in before.policies[0][1], "name: v2" in after.policies[0][1]) == (True, True)


def test_a_folder_that_appears_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "policies"
    files = PolicyFiles(folder, tmp_path / "agent.yaml")
    for missing in (folder.parent.parent, folder.parent, folder):
        files.read()
        until_changed(files, missing.mkdir)
    files.close()


def test_other_files_are_no_change(files: PolicyFiles, folder: Path, tmp_path: Path) -> None:
    files.read()
    for other in (folder / "README", folder / ".x.swp", tmp_path / "unrelated"):
        other.write_text("x")
    with pytest.raises(trio.TooSlowError):
        until_changed(files, lambda: None, seconds=0.3)


def test_a_file_that_is_being_written_is_waited_for(files: PolicyFiles, folder: Path) -> None:
    """However slowly: a half of it may well be a policy, which allows something else."""
    files.read()
    seen: list[str] = []

    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    await files.changed()
                    seen.append((folder / "web.yaml").read_text())

                nursery.start_soon(follow)
                with (folder / "web.yaml").open("w") as file:
                    for half in ("# one\n", "# two\n"):
                        file.write(half)
                        file.flush()
                        await trio.sleep(0.3)
                    assert not seen

    trio.run(main)
    assert seen == ["# one\n# two\n"]
