"""What a command of `skouter run` must not have, or it could free itself (capabilities(7), prctl(2)).

It runs as the user who called sudo, without the capabilities that reach around the socket hooks, and without
a way to gain them (no_new_privs). A command run as root owns the files of cgroupfs and bpffs, whatever its
capabilities: it gets a mount namespace in which it can neither write the one nor see the other.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway import cgroups

# linux/capability.h
DROPPED = {
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_BOOT": 22,
    "MKNOD": 27,
    "SETFCAP": 31,
    "PERFMON": 38,
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
KERNEL_FILES = ("cgroup", "cgroup2", "sysfs", "debugfs", "tracefs", "securityfs", "configfs")
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_SLAVE = 16384, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """Whom to run as is not to be found out."""


@dataclass(frozen=True)
class User:
    """Whom the command runs as."""

    uid: int
    gid: int
    name: str | None = None
    home: str | None = None


def invoking_user() -> User:
    """The user who called sudo or doas, else whoever runs this."""
    uid = os.environ.get("SUDO_UID")
    if uid is None and "DOAS_USER" in os.environ:
        uid = str(pwd.getpwnam(os.environ["DOAS_USER"]).pw_uid)
    if os.geteuid() != 0 or uid is None or uid == "0":
        return User(os.getuid(), os.getgid())
    try:
        entry = pwd.getpwuid(int(uid))
    except (KeyError, ValueError):
        raise PrivilegeError(f"SUDO_UID is {uid!r}, which is no user here: unset it to run as root") from None
    return User(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir)


def confine(user: User, cgroup: Path, hidden: tuple[Path, ...]) -> Callable[[], None]:
    """What the child does between fork and exec: everything that can fail is fatal to it."""

    def confined() -> None:
        cgroups.join(cgroup)
        if user.uid == 0:
            _shut_mounts(hidden)
        _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        for number in DROPPED.values():
            if number <= last:
                _call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
        become(user)
        if user.name is None:
            _drop_capabilities()
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    return confined


def become(user: User) -> None:
    """For good, groups included; whoever runs this is that user already where there is no name."""
    if user.name is not None:
        os.initgroups(user.name, user.gid)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)


def enter_new_network() -> None:
    """A network namespace of this process's own, with nothing in it."""
    _call("unshare", CLONE_NEWNET)


def environment(user: User) -> dict[str, str]:
    """The caller's environment, with sudo's traces of root taken back."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SUDO_", "SKOUTER_"))}
    if user.name is not None:
        kept.update(USER=user.name, LOGNAME=user.name, HOME=user.home or "/")
    return kept


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _drop_capabilities() -> None:
    """Root keeps its uid; exec would give it what the bounding set still holds, so only that counts. The
    inheritable set is cleared all the same (capset(2))."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    header, data = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capget", ctypes.byref(header), ctypes.byref(data))
    for number in DROPPED.values():
        for column in range(3):
            data[number // 32 * 3 + column] &= ~(1 << number % 32) & 0xFFFFFFFF
    data[2] = data[5] = 0
    _call("capset", ctypes.byref(header), ctypes.byref(data))


def _shut_mounts(hidden: tuple[Path, ...]) -> None:
    """What root could use to start something outside of its cgroup becomes read-only: the cgroups themselves,
    and the files that tell the kernel which program to start (core(5), proc(5))."""
    _call("unshare", CLONE_NEWNS)
    _call("mount", None, b"/", None, MS_REC | MS_SLAVE, None)
    for line in cgroups.mounts().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] in KERNEL_FILES:
            _make_read_only(fields.split(" ")[4].encode().decode("unicode_escape").encode())
    for path in (b"/proc/sys", b"/proc/sysrq-trigger"):
        if os.path.exists(path):  # noqa: PTH110 - bytes, for mount(2)
            _call("mount", path, path, None, MS_BIND | MS_REC, None)
            _make_read_only(path)
    for folder in hidden:
        if folder.is_dir():
            _call("mount", b"none", str(folder).encode(), b"tmpfs", MS_RDONLY, b"mode=000")


def _make_read_only(path: bytes) -> None:
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    _call("mount", None, path, None, flags, None)
