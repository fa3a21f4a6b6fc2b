"""One machine of QEMU's, without KVM, that sees this host's files and keeps none of its own.

    host  /  --read-only bind mount, virtiofsd-->  guest  overlay(tmpfs over it) = /

So the guest has this checkout, this Python and every tool of the host; what it writes is gone with it. An
initramfs of busybox and a few modules mounts that root and starts one command in it, which tells what it has
to tell on the second serial line. What is computed in a guest costs ten times as much as here.

Sources: qemu(1), virtiofsd(1), Documentation/driver-api/early-userspace/buffer-format.rst (cpio "newc").
"""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.matrix.kernels import Kernel, module_name

MODULES = ("virtio_pci", "virtiofs", "overlay")
MEMORY = "2G"
# Without -cx16 kernel 6.12 double-faults at random under TCG; la57 slows every walk of a page table.
PROCESSOR = ("-accel", "tcg,thread=multi", "-cpu", "max,la57=off,-cx16", "-smp", "2")
SECONDS = 3600
PATIENCE = 10  # how many times longer than on this host a test may wait
VIRTIOFSD = "/usr/libexec:/usr/lib/qemu:/usr/lib"

INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /changes /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /$module.ko; done
mount -t virtiofs -o ro host /host
mount -t tmpfs -o mode=755 changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root
mkdir -p /root/lib/modules /root/proc /root/sys /root/dev /root/run
ln -sfn {tree} /root/lib/modules/{release}
mount -t tmpfs run /root/run
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t cgroup2 none /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
ifconfig lo up
exec switch_root /root /bin/sh -c {command}
"""
COMMAND = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH={checkout}
export SKOUTER_TEST_PATIENCE={patience}
stty -F /dev/ttyS1 raw
cd {checkout}; {command} >/dev/ttyS1
busybox poweroff -f
"""


def run(
    kernel: Kernel,
    checkout: Path,
    command: Sequence[str],
    console: Path,
    memory: str = MEMORY,
    tap: str = "",
) -> Iterator[str]:
    """Lines that `command`, run in `checkout` under this kernel, writes to its standard output.

    Its standard error and the kernel's messages go to the file `console`. `tap` is the interface of this
    network namespace at whose other end the guest's is; without one it has none.
    """
    interface = f"tap,id=net,ifname={tap},script=no,downscript=no"
    network = ("-netdev", interface, "-device", "virtio-net-pci,netdev=net") if tap else ()
    with tempfile.TemporaryDirectory() as scratch, _exported(Path(scratch)) as socket:
        archive = Path(scratch, "initramfs")
        archive.write_bytes(initramfs(kernel, checkout, command))
        machine = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "TERM", "nice", "-n", "19"),
                *("timeout", "--foreground", "-k", "5", str(SECONDS)),
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", *PROCESSOR),
                *("-m", memory, "-object", f"memory-backend-memfd,id=mem,size={memory},share=on"),
                *network,
                *("-numa", "node,memdev=mem", "-chardev", f"socket,id=fs,path={socket}"),
                *("-device", "vhost-user-fs-pci,chardev=fs,tag=host"),
                *("-serial", f"file:{console}", "-serial", "file:/dev/fd/1"),
                *("-kernel", str(kernel.image), "-initrd", str(archive)),
                *("-append", "console=ttyS0 panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert machine.stdout is not None
        try:
            yield from machine.stdout
        finally:
            machine.terminate()
            machine.wait()


@contextmanager
def _exported(scratch: Path) -> Iterator[Path]:
    """The socket of a virtiofsd for this host's root; its read-only mount is in a namespace of its own."""
    program = shutil.which("virtiofsd", path=VIRTIOFSD)
    if program is None:
        raise SystemExit("virtiofsd is missing: run make matrix, which installs it")
    root, socket = scratch / "root", scratch / "socket"
    root.mkdir()
    mount = f"mount --bind / {root} && mount -o remount,bind,ro {root} && exec"
    serve = f"{program} --socket-path={socket} -o source={root} -o cache=always"
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", f"{mount} {serve}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("virtiofsd does not start: is this root on a whole machine?")
            time.sleep(0.02)
        yield socket
    finally:
        server.terminate()
        server.wait()


def initramfs(kernel: Kernel, checkout: Path, command: Sequence[str]) -> bytes:
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    modules = kernel.with_dependencies(MODULES)
    names = [module_name(path.name) for path in modules]
    inner = COMMAND.format(
        checkout=shlex.quote(str(checkout)), command=shlex.join(command), patience=PATIENCE
    )
    init = INIT.format(
        modules=" ".join(names), tree=kernel.modules, release=kernel.release, command=shlex.quote(inner)
    )
    files = {"init": init.encode(), "bin": None, "bin/busybox": busybox}
    files |= {f"{name}.ko": unpacked(path) for name, path in zip(names, modules, strict=True)}
    return cpio(files)


def unpacked(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def cpio(files: dict[str, bytes | None]) -> bytes:
    """An archive of executable files; None makes a folder."""
    entries = [(name, 0o40755 if data is None else 0o100755, data or b"") for name, data in files.items()]
    return b"".join(_entry(*entry) for entry in [*entries, ("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
