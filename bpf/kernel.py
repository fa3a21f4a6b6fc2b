"""The bpf(2) calls that are needed, through libbpf.

libbpf rather than BCC: it loads in a millisecond, needs no LLVM, and knows the system call's number on every
architecture. Every function raises :class:`OSError` with the kernel's errno. Source: bpf(2), libbpf's bpf.h.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cffi import FFI

from bpf.contract import ARRAY, ARRAY_OF_MAPS, INNER_MAP, RING, Map

ffi = FFI()
ffi.cdef(
    """
    struct map_info {
        uint32_t type, id, key_size, value_size, max_entries, map_flags; char name[16];
        uint8_t rest[64];
    };
    struct prog_info {
        uint32_t type, id; uint8_t tag[8]; uint32_t jited_len, xlated_len; uint64_t jited, xlated;
        uint64_t load_time; uint32_t uid, nr_maps; uint64_t map_ids; char name[16];
        uint8_t rest[160];
    };
    struct test_run {
        size_t sz;
        const void *data_in; void *data_out; uint32_t data_size_in, data_size_out;
        const void *ctx_in; void *ctx_out; uint32_t ctx_size_in, ctx_size_out;
        uint32_t retval; int repeat; uint32_t duration, flags, cpu, batch_size;
    };
    struct map_options {
        size_t sz; uint32_t btf_fd, btf_key_type_id, btf_value_type_id, btf_vmlinux_value_type_id;
        uint32_t inner_map_fd, map_flags; uint64_t map_extra; uint32_t numa_node, map_ifindex;
    };
    struct load_options {
        size_t sz; int attempts, expected_attach_type; uint32_t prog_btf_fd, prog_flags, prog_ifindex;
        uint32_t kern_version, attach_btf_id, attach_prog_fd, attach_btf_obj_fd; const int *fd_array;
        const void *func_info; uint32_t func_info_cnt, func_info_rec_size;
        const void *line_info; uint32_t line_info_cnt, line_info_rec_size;
        uint32_t log_level, log_size; char *log_buf;
    };
    struct link_options {
        size_t sz; uint32_t flags; const uint32_t *iter_info; uint32_t iter_info_len, target_btf_id;
        uint64_t cookie, reserved;
    };
    struct attach_options { size_t sz; unsigned int flags; int replace; };
    struct ring_buffer;
    struct btf;
    struct btf *btf__new_empty(void);
    int btf__add_int(struct btf *btf, const char *name, size_t size, int encoding);
    int btf__add_struct(struct btf *btf, const char *name, uint32_t size);
    int btf__load_into_kernel(struct btf *btf);
    int btf__fd(const struct btf *btf);
    void btf__free(struct btf *btf);
    int bpf_prog_load(int type, const char *name, const char *license, const void *code, size_t count,
                      const struct load_options *options);
    int bpf_obj_pin(int fd, const char *path);
    int bpf_obj_get(const char *path);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
    int bpf_map_delete_elem(int fd, const void *key);
    int bpf_map_get_next_key(int fd, const void *key, void *next_key);
    int bpf_map_lookup_batch(int fd, void *before, void *behind, void *keys, void *values, uint32_t *count,
                             const void *options);
    int bpf_map_create(int type, const char *name, uint32_t key, uint32_t value, uint32_t entries,
                       const struct map_options *options);
    int bpf_prog_attach(int prog, int target, int type, unsigned int flags);
    int bpf_prog_attach_opts(int prog, int target, int type, const struct attach_options *options);
    int bpf_prog_detach2(int prog, int target, int type);
    int bpf_prog_query(int target, int type, uint32_t flags, uint32_t *attach_flags, uint32_t *ids,
                       uint32_t *count);
    int bpf_prog_get_fd_by_id(uint32_t id);
    int bpf_map_get_fd_by_id(uint32_t id);
    int bpf_link_create(int prog, int target, int type, const struct link_options *options);
    int bpf_iter_create(int link);
    int libbpf_find_vmlinux_btf_id(const char *name, int type);
    int bpf_prog_test_run_opts(int prog, struct test_run *opts);
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *size);
    int libbpf_num_possible_cpus(void);
    struct ring_buffer *ring_buffer__new(int map, int (*call)(void *, void *, size_t), void *, void *);
    int ring_buffer__consume(struct ring_buffer *ring);
    int ring_buffer__epoll_fd(const struct ring_buffer *ring);
    void ring_buffer__free(struct ring_buffer *ring);
    """
)
_lib = ffi.dlopen("libbpf.so.1")

ALLOW_MULTI, REPLACE, BEFORE = 2, 4, 8
NOT_THERE_YET = 1  # BPF_NOEXIST
HOOKS = 64  # values of enum bpf_attach_type that are tried
TCX_INGRESS, TCX_EGRESS = 46, 47  # of the same enum
TRACE_ITER = 28


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def get(path: Path) -> int:
    """A descriptor of what is pinned at `path`."""
    return _checked(_lib.bpf_obj_get(str(path).encode()), str(path))


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value of `size` bytes, or None."""
    value = ffi.new("char[]", size)
    result = _lib.bpf_map_lookup_elem(fd, key, value)
    if result == -2:
        return None
    _checked(result, "map lookup")
    return bytes(ffi.buffer(value))


def update(fd: int, key: bytes, value: bytes) -> None:
    _checked(_lib.bpf_map_update_elem(fd, key, value, 0), "map update")


def insert(fd: int, key: bytes, value: bytes) -> bool:
    """Whether the key was not there yet: what is there stays as it is."""
    result = _lib.bpf_map_update_elem(fd, key, value, NOT_THERE_YET)
    if result == -errno.EEXIST:
        return False
    _checked(result, "map update")
    return True


def delete(fd: int, key: bytes) -> bool:
    """Whether the key was there."""
    result = _lib.bpf_map_delete_elem(fd, key)
    if result == -2:
        return False
    _checked(result, "map delete")
    return True


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key behind `key`, the first one for None, None behind the last."""
    found = ffi.new("char[]", size)
    result = _lib.bpf_map_get_next_key(fd, ffi.NULL if key is None else key, found)
    if result == -2:
        return None
    _checked(result, "map walk")
    return bytes(ffi.buffer(found))


def rows(fd: int, key: int, value: int, at_once: int = 4096) -> Iterator[tuple[bytes, bytes]]:
    """All rows of a hash table, by many in each call: (keys, values), one behind the other, `key` and `value`
    bytes each. What changes meanwhile may be there or not (BPF_MAP_LOOKUP_BATCH, Linux 5.6).
    """
    at, count, result = ffi.new("uint32_t *"), ffi.new("uint32_t *"), 0
    keys, values = ffi.new("char[]", at_once * key), ffi.new("char[]", at_once * value)
    before = ffi.NULL
    while result == 0:
        count[0] = at_once
        result = _lib.bpf_map_lookup_batch(fd, before, at, keys, values, count, ffi.NULL)
        if result != -errno.ENOENT:  # which is the end, with what was left
            _checked(result, "map walk")
        yield ffi.buffer(keys)[: count[0] * key], ffi.buffer(values)[: count[0] * value]
        before = at


def pin(fd: int, path: Path) -> None:
    _checked(_lib.bpf_obj_pin(fd, str(path).encode()), str(path))


def create_map(wanted: Map) -> int:
    """A map of the contract. Socket storage needs BTF to say how large a value is; a table of maps needs one
    of them as the model of all."""
    options = ffi.new("struct map_options *")
    options.sz, options.map_flags = ffi.sizeof("struct map_options"), wanted.flags
    model, types = -1, ffi.NULL
    if wanted.is_outer:
        model = create_ring(4096) if wanted.kind == "rings" else create_array(wanted.inner_size, 1)
        options.inner_map_fd = model
    if wanted.kind == "storage":
        types = _lib.btf__new_empty()
        options.btf_key_type_id = _lib.btf__add_int(types, b"int", 4, 1)
        options.btf_value_type_id = _lib.btf__add_struct(types, b"value", wanted.value_size)
        _checked(_lib.btf__load_into_kernel(types), "BTF")
        options.btf_fd = _lib.btf__fd(types)
    try:
        return _checked(
            _lib.bpf_map_create(
                wanted.kernel_type,
                wanted.name.encode(),
                wanted.key_size,
                wanted.value_size,
                wanted.entries,
                options,
            ),
            f"map {wanted.name}",
        )
    finally:
        if model >= 0:
            os.close(model)
        if types != ffi.NULL:
            _lib.btf__free(types)


def create_ring(size: int) -> int:
    """A ring buffer map of `size` bytes (a power of two, whole pages)."""
    return _checked(_lib.bpf_map_create(RING, b"events", 0, 0, size, ffi.NULL), "ring buffer")


def create_array(size: int, entries: int) -> int:
    """An array of values of `size` bytes, to be one of the maps in a table of automata."""
    options = ffi.new("struct map_options *")
    options.sz, options.map_flags = ffi.sizeof("struct map_options"), INNER_MAP
    return _checked(_lib.bpf_map_create(ARRAY, b"automaton", 4, size, entries, options), "automaton")


def load_program(name: str, code: bytes, kind: int, attach: int, target: int = 0) -> int:
    """`target` is the BTF id of the kernel's function that a tracing program is for, else 0.

    Raises with the last words of the verifier's log.
    """
    log = ffi.new("char[]", 1 << 16)
    options = ffi.new("struct load_options *")
    options.sz, options.attempts, options.expected_attach_type = ffi.sizeof("struct load_options"), 5, attach
    options.attach_btf_id = target
    arguments = (kind, name.encode()[:15], b"GPL", code, len(code) // 8, options)
    fd = _lib.bpf_prog_load(*arguments)
    if fd < 0:
        options.log_buf, options.log_size, options.log_level = log, len(log), 1
        fd = _lib.bpf_prog_load(*arguments)
    if fd < 0:
        words = " / ".join(ffi.string(log).decode(errors="replace").splitlines()[-3:])
        raise OSError(-fd, f"{os.strerror(-fd)}: {words}")
    return int(fd)


def map_info(fd: int) -> Any:
    """type, id, key_size, value_size, max_entries, map_flags (BPF_OBJ_GET_INFO_BY_FD)."""
    return _info(fd, "struct map_info")


def program_info(fd: int) -> Any:
    """type, id, tag, name."""
    return _info(fd, "struct prog_info")


def program_maps(fd: int) -> list[int]:
    """Ids of the maps that a program uses."""
    ids, size = ffi.new("uint32_t[64]"), ffi.new("uint32_t *", ffi.sizeof("struct prog_info"))
    info = ffi.new("struct prog_info *", {"nr_maps": 64, "map_ids": int(ffi.cast("uintptr_t", ids))})
    _checked(_lib.bpf_obj_get_info_by_fd(fd, info, size), "object info")
    return list(ids[0 : info.nr_maps])


def _info(fd: int, kind: str) -> Any:
    info, size = ffi.new(f"{kind} *"), ffi.new("uint32_t *", ffi.sizeof(kind))
    _checked(_lib.bpf_obj_get_info_by_fd(fd, info, size), "object info")
    return info


def attach(program: int, cgroup: int, hook: int) -> None:
    """In multi mode: other programs on the cgroup stay, and ours outlives this process."""
    _checked(_lib.bpf_prog_attach(program, cgroup, hook, ALLOW_MULTI), "attach")


def detach(program: int, cgroup: int, hook: int) -> None:
    _checked(_lib.bpf_prog_detach2(program, cgroup, hook), "detach")


def attach_to_link(program: int, interface: int, hook: int, replaced: int | None = None) -> None:
    """Before all others at TCX_INGRESS or TCX_EGRESS of the interface with this index (Linux 6.6), or in the
    very place of the program `replaced`. It stays until it is detached or the interface goes; :func:`detach`
    and :func:`attached`, which gives the first of the chain first, take an index in place of a cgroup, too.
    """
    options = ffi.new("struct attach_options *", {"sz": ffi.sizeof("struct attach_options")})
    options.flags, options.replace = (BEFORE, 0) if replaced is None else (REPLACE, replaced)
    _checked(_lib.bpf_prog_attach_opts(program, interface, hook, options), "attach to a link")


def attached(cgroup: int, hook: int) -> list[int]:
    """Ids of the programs attached to this very cgroup."""
    flags, ids, count = ffi.new("uint32_t *"), ffi.new("uint32_t[64]"), ffi.new("uint32_t *", 64)
    _checked(_lib.bpf_prog_query(cgroup, hook, 0, flags, ids, count), "attach query")
    return list(ids[0 : count[0]])


def attachments(cgroup: int) -> list[tuple[int, int]]:
    """(hook, id of the program) of all that is attached to this very cgroup, at whatever hook there is."""
    found = []
    for hook in range(HOOKS):
        with suppress(OSError):  # EINVAL: no hook of cgroups
            found += [(hook, number) for number in attached(cgroup, hook)]
    return found


def program_by_id(number: int) -> int:
    return _checked(_lib.bpf_prog_get_fd_by_id(number), f"program {number}")


def map_by_id(number: int) -> int:
    return _checked(_lib.bpf_map_get_fd_by_id(number), f"map {number}")


def wait_for_programs() -> None:
    """Returns when every program that was running at the call has ended.

    A write to a table of maps promises that (maybe_wait_bpf_programs() in kernel/bpf/syscall.c, since 4.20).
    """
    model = create_ring(4096)
    table = -1
    try:
        options = ffi.new("struct map_options *")
        options.sz, options.inner_map_fd = ffi.sizeof("struct map_options"), model
        table = _checked(_lib.bpf_map_create(ARRAY_OF_MAPS, b"wait", 4, 4, 1, options), "map of maps")
        update(table, bytes(4), model.to_bytes(4, sys.byteorder))
    finally:
        for fd in (model, table):
            if fd >= 0:
                os.close(fd)


def iterator_target(name: str) -> int:
    """The BTF id that a program for the iterator `name` is loaded with; needs CONFIG_DEBUG_INFO_BTF."""
    return _checked(_lib.libbpf_find_vmlinux_btf_id(name.encode(), TRACE_ITER), f"iterator {name}")


def iterate(program: int, table: int) -> int:
    """A descriptor from which is read what an iterator's program writes of each element of a map."""
    which = ffi.new("uint32_t[4]", [table])
    options = ffi.new("struct link_options *", {"sz": ffi.sizeof("struct link_options"), "iter_info": which})
    options.iter_info_len = ffi.sizeof(which)
    link = _checked(_lib.bpf_link_create(program, 0, TRACE_ITER, options), "iterator")
    try:
        return _checked(_lib.bpf_iter_create(link), "iterator")
    finally:
        os.close(link)


def possible_cpus() -> int:
    return _checked(_lib.libbpf_num_possible_cpus(), "possible CPUs")


def test_run(program: int, frame: bytes, repeat: int = 1, context: bytes = b"") -> tuple[int, int]:
    """(return value, mean ns) of BPF_PROG_TEST_RUN on a frame that starts with an Ethernet header."""
    data, ctx = ffi.from_buffer(frame), ffi.from_buffer(context)
    opts = ffi.new("struct test_run *")
    opts.sz = ffi.sizeof("struct test_run")
    opts.data_in, opts.data_size_in, opts.repeat = data, len(frame), repeat
    if context:
        opts.ctx_in, opts.ctx_size_in = ctx, len(context)
    _checked(_lib.bpf_prog_test_run_opts(program, opts), "test run")
    return int(opts.retval), int(opts.duration)


def test_run_context(program: int, frame: bytes, context: bytes) -> tuple[int, bytes]:
    """(return value, context) of one run: what the program has written to the context it was given."""
    opts, out = ffi.new("struct test_run *"), ffi.new("char[]", len(context))
    opts.sz, opts.repeat = ffi.sizeof("struct test_run"), 1
    data, ctx = ffi.from_buffer(frame), ffi.from_buffer(context)
    opts.data_in, opts.data_size_in = data, len(frame)
    opts.ctx_in, opts.ctx_size_in, opts.ctx_out, opts.ctx_size_out = ctx, len(context), out, len(context)
    _checked(_lib.bpf_prog_test_run_opts(program, opts), "test run")
    return int(opts.retval), bytes(ffi.buffer(out))


class Ring:
    """The reading end of a ring buffer map: `fileno()` becomes readable, `consume()` calls back."""

    def __init__(self, fd: int, call: Callable[[bytes], None]) -> None:
        def sample(_context: Any, data: Any, size: int) -> int:
            call(bytes(ffi.buffer(data, size)))
            return 0

        self._callback = ffi.callback("int(void *, void *, size_t)", sample)
        self._ring = _lib.ring_buffer__new(fd, self._callback, ffi.NULL, ffi.NULL)
        if self._ring == ffi.NULL:
            raise OSError(ffi.errno, f"ring buffer: {os.strerror(ffi.errno)}")

    def fileno(self) -> int:
        return int(_lib.ring_buffer__epoll_fd(self._ring))

    def consume(self) -> int:
        """Hands every waiting sample to the callback; how many there were."""
        return _checked(_lib.ring_buffer__consume(self._ring), "ring buffer")

    def close(self) -> None:
        if self._ring is not None:
            _lib.ring_buffer__free(self._ring)
            self._ring = None
