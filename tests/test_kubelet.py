"""What paths of cgroups say of pods: layouts of kubelet and the runtimes, and names that users choose."""

import pytest

from gateway.kubernetes.kubelet import PodCgroup, is_of_interest, is_top, pods, read, tops

UID = "0b8f1f0e-5a3c-4a51-9c3e-0f3b5a4f7c11"
FLAT = UID.replace("-", "_")
STATIC = "3c1f0a9be0f54a7e9f7a3e6d8c2b1a00"
ID = "c0ffee" * 10 + "c0de"
NODE = f"/docker/{'ab' * 32}"
SCOPE = f"/system.slice/docker-{'ab' * 32}.scope"

SYSTEMD = [
    (f"/kubepods.slice/kubepods-pod{FLAT}.slice", "guaranteed"),
    (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice", "burstable"),
    (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{FLAT}.slice", "besteffort"),
    (f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{FLAT}.slice", "guaranteed"),
    (
        f"{SCOPE}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"
        f"/kubelet-kubepods-burstable-pod{FLAT}.slice",
        "burstable",
    ),
]
CGROUPFS = [
    (f"/kubepods/pod{UID}", "guaranteed"),
    (f"/kubepods/burstable/pod{UID}", "burstable"),
    (f"/kubepods/besteffort/pod{UID}", "besteffort"),
    (f"/kubelet/kubepods/besteffort/pod{UID}", "besteffort"),
    (f"{NODE}/kubelet/kubepods/burstable/pod{UID}", "burstable"),
    (f"{NODE}/kubepods/pod{UID}", "guaranteed"),
]


@pytest.mark.parametrize(("path", "qos"), SYSTEMD + CGROUPFS)
def test_a_pods_cgroup_has_its_uid_and_class(path: str, qos: str) -> None:
    assert read(path) == PodCgroup(UID, qos)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [path for path, _ in SYSTEMD])
@pytest.mark.parametrize("runtime", ["cri-containerd", "crio", "docker"])
def test_containers_of_every_runtime_with_systemd(path: str, runtime: str) -> None:
    found = read(f"{path}/{runtime}-{ID}.scope")
    assert found
    assert (found.uid, found.container, found.is_pod) == (UID, ID, False)


@pytest.mark.parametrize("path", [path for path, _ in CGROUPFS])
@pytest.mark.parametrize("name", [ID, f"crio-{ID}"])
def test_containers_with_cgroupfs(path: str, name: str) -> None:
    found = read(f"{path}/{name}")
    assert found
    assert found.container == ID


@pytest.mark.parametrize("name", [f"crio-conmon-{ID}.scope", f"crio-conmon-{ID}", "other"])
def test_a_runtimes_monitor_is_no_container(name: str) -> None:
    found = read(f"{SYSTEMD[0][0]}/{name}")
    assert found
    assert found.container == ""
    assert not found.is_pod


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/kubepods",
        "/kubepods.slice",
        "/kubepods/burstable",
        "/kubepods.slice/kubepods-burstable.slice",
        "/kubepods/burstable/other",
        f"/kubepods/burstable/burstable/pod{UID}",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-burstable-pod{FLAT}.slice",
        f"/kubepods.slice/kubepods-pod{FLAT}.scope",
        f"/kubepods.slice/pod{UID}",
        f"{SYSTEMD[0][0]}/{ID}/deeper",
    ],
)
def test_what_is_no_layout_is_no_pod(path: str) -> None:
    assert read(path) is None


@pytest.mark.parametrize(
    "top",
    [
        "/user.slice/user-1000.slice/user@1000.service/kubepods.slice",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/kubepods",
        "/system.slice/nginx.service/kubepods",
        "/system.slice/docker-0123.scope/kubepods",
        "/docker/mine/kubepods",
        "/other/kubepods",
        "/kubepods/kubepods",
        "/xkubepods.slice",
    ],
)
def test_nobody_makes_a_pods_root_by_choosing_a_name(top: str) -> None:
    assert not is_top(top)


def test_nobody_nests_a_pod_into_a_pod() -> None:
    assert read(f"/kubepods/pod{UID}/{ID}/kubepods/pod{UID}") is None
    assert read(f"/kubepods/pod{UID}/kubepods") == PodCgroup(UID, "guaranteed", "")


@pytest.mark.parametrize(
    "path",
    [
        f"/k8s.slice/k8s-deep.slice/k8s-deep-kubepods.slice/k8s-deep-kubepods-pod{FLAT}.slice",
        f"/k8s/deep/kubepods/pod{UID}",
    ],
)
def test_a_root_of_ones_own(path: str) -> None:
    found = read(path, "/k8s/deep")
    assert found
    assert found.uid == UID
    above = path.rsplit("/", 1)[0]
    while above:
        assert is_of_interest(above, "/k8s/deep"), above
        above = above.rsplit("/", 1)[0]
    assert read(f"/kubepods/pod{UID}", "/k8s/deep") is None
    assert not is_of_interest("/k8s/other", "/k8s/deep")


@pytest.mark.parametrize("path", [f"{path}/{ID}" for path, _ in SYSTEMD + CGROUPFS])
def test_all_folders_above_a_container_are_watched(path: str) -> None:
    above = path.rsplit("/", 1)[0]
    while above:
        assert is_of_interest(above), above
        above = above.rsplit("/", 1)[0]
    assert is_of_interest("/")


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods/pod{UID}/{ID}",
        "/kubepods/other",
        "/system.slice/nginx.service",
        "/user.slice/user-1000.slice/user@1000.service",
        "/init.scope",
        "/lxc",
    ],
)
def test_where_no_pod_can_lie_nothing_is_watched(path: str) -> None:
    assert not is_of_interest(path)


def test_static_pods_are_known_by_their_uid() -> None:
    for path, is_static in ((f"/kubepods/pod{STATIC}", True), (f"/kubepods/pod{UID}", False)):
        found = read(path)
        assert found
        assert found.is_static == is_static


def test_the_tree_of_a_node() -> None:
    tree = ["/", "/kubepods.slice", SYSTEMD[1][0], f"{SYSTEMD[1][0]}/crio-{ID}.scope", "/system.slice"]
    assert tops(tree) == ["/kubepods.slice"]
    assert pods(tree) == {SYSTEMD[1][0]: PodCgroup(UID, "burstable")}
