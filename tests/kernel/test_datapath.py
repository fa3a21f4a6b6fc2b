"""Attach, adopt, detach: what is pinned is whole or told, and outlives who made it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpf import datapath, kernel, load
from bpf.contract import Contract, contract
from bpf.datapath import DECIDING, Datapath
from bpf.load import DatapathError
from tests.conftest import BPFFS, unique_name


@pytest.fixture
def root() -> Iterator[Path]:
    path = BPFFS / unique_name()
    yield path
    datapath.unpin(path)


@pytest.fixture
def folder(cgroup_root: Path) -> Iterator[Path]:
    path = cgroup_root / unique_name()
    path.mkdir()
    yield path
    path.rmdir()


def identities(loaded: Datapath) -> dict[str, int]:
    return {name: kernel.program_info(fd).id for name, fd in loaded.programs.items()}


def test_a_restart_adopts_the_same_programs_and_maps(root: Path) -> None:
    first = datapath.load(root)
    first["grants"][(bytes(16), 7)] = ([(1, 2)],)
    before = identities(first)
    first.close()
    second = datapath.load(root)
    assert identities(second) == before
    assert second["grants"][(bytes(16), 7)].slots[0].expires == 2
    second.close()


def test_a_restart_neither_compiles_nor_loads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datapath.load(root).close()

    def forbidden(*_arguments: object) -> None:
        raise AssertionError("compiled or loaded again")

    monkeypatch.setattr(datapath, "build", forbidden)
    datapath.load(root).close()


def test_no_process_that_runs_has_llvm_in_it(root: Path) -> None:
    code = (
        f"import sys; from pathlib import Path; from bpf import datapath; datapath.load(Path({str(root)!r}))"
    )
    code += "; print('bcc' in sys.modules, 'LLVM' in open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_start_that_was_interrupted_between_maps_and_programs_is_completed(root: Path) -> None:
    datapath.load(root).close()
    shutil.rmtree(load.programs_folder(root))
    (load.maps_folder(root) / "flows").unlink()
    with pytest.raises(datapath.NotLoadedError):
        Datapath(root)
    datapath.load(root).close()
    assert (load.maps_folder(root) / "flows").exists()


def test_a_map_of_another_layout_is_told_and_never_used(root: Path) -> None:
    folder = load.maps_folder(root)
    folder.mkdir(parents=True)
    wrong = replace(contract().maps["grants"], value_size=128)
    fd = kernel.create_map(wrong)
    kernel.pin(fd, folder / "grants")
    os.close(fd)
    with pytest.raises(DatapathError, match="grants: a map of another layout"):
        datapath.load(root)
    assert not load.programs_folder(root).exists()


def test_maps_of_another_contract_are_told_and_left_alone(root: Path) -> None:
    (root / "maps-0123456789abcdef").mkdir(parents=True)
    datapath.load(root).close()
    assert datapath.other_layouts(root) == ["maps-0123456789abcdef"]


def test_any_change_of_a_struct_changes_the_layout_s_name() -> None:
    text = contract().text
    assert Contract(text.replace("__u64 expires;", "__u32 expires, spare;", 1)).layout != contract().layout
    assert Contract(text.replace("MAP(hash, rules, struct rule_key, struct rule, 262144)", "")).layout != (
        contract().layout
    )
    assert Contract(text.replace("/* contract.h:", "/* this is")).layout == contract().layout


def test_attaching_twice_attaches_once_and_detaching_leaves_nothing(root: Path, folder: Path) -> None:
    loaded = datapath.load(root)
    loaded.attach(folder)
    loaded.attach(folder)
    assert sorted(loaded.attached(folder)) == sorted(DECIDING)
    with datapath.open_folder(folder) as target:
        for hook in load.HOOKS.values():
            assert len(kernel.attached(target, hook.attach)) <= 1
    assert sorted(loaded.detach(folder)) == sorted(DECIDING)
    assert loaded.attached(folder) == []
    loaded.close()


def test_an_older_program_of_ours_is_replaced_and_others_stay(root: Path, folder: Path) -> None:
    older, other = (
        datapath.load(root),
        kernel.load_program("other", bytes.fromhex("b7000000010000009500000000000000"), 8, 0),
    )
    older.attach(folder)
    with datapath.open_folder(folder) as target:
        kernel.attach(other, target, 1)
    load.programs_folder(root).rename(root / "programs-0123456789abcdef")
    newer = datapath.load(root)
    newer.attach(folder)
    with datapath.open_folder(folder) as target:
        there = kernel.attached(target, 1)
    assert sorted(there) == sorted([identities(newer)["egress"], kernel.program_info(other).id])
    newer.detach(folder)
    with datapath.open_folder(folder) as target:
        assert kernel.attached(target, 1) == [kernel.program_info(other).id]
        kernel.detach(other, target, 1)
    for loaded in (older, newer):
        loaded.close()
    os.close(other)


def test_what_is_attached_outlives_the_process_that_did_it(root: Path, folder: Path) -> None:
    code = (
        "import os; from pathlib import Path; from bpf import datapath;"
        f"datapath.load(Path({str(root)!r})).attach(Path({str(folder)!r})); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    loaded = datapath.load(root)
    assert sorted(loaded.attached(folder)) == sorted(DECIDING)
    loaded.detach(folder)
    loaded.close()


def test_a_text_that_does_not_compile_says_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(load.__file__).parent.parent))
    monkeypatch.setattr(load, "OBJECTS", tmp_path)
    with pytest.raises(DatapathError, match=r"packet\.h:\d+:\d+: error"):
        load.compile_object(tmp_path / "object.json", ("-Dis_ipv4=1+",))
    assert not (tmp_path / "object.json").exists()


KINDS = {kind for m in contract().maps.values() for kind in (m.key, m.value)} - {
    "struct slate",
    "struct socket",
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_both_ways_to_read_a_row_agree(kind: str) -> None:
    raw = bytes(i * 7 % 251 for i in range(contract().ffi.sizeof(kind)))
    assert contract().reader(kind)(raw) == contract().plain(contract().unpack(kind, raw))
