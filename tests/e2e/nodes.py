"""NUMA nodes for tests: where a process runs, where its pages are, and sending them elsewhere. Raw system calls, no libnuma."""
import contextlib
import ctypes
import os
import pathlib
import platform
import re
import struct

PAGE = 4096
MOVE_ALL = 4
SYS_MIGRATE_PAGES, SYS_MOVE_PAGES = {"x86_64": (256, 279), "aarch64": (238, 239)}.get(platform.machine(), (0, 0))
BALANCING = pathlib.Path("/proc/sys/kernel/numa_balancing")
NODE = pathlib.Path("/sys/devices/system/node")
libc = ctypes.CDLL(None, use_errno=True)


def numbers(text):
    """Of a list like "0-1,4"."""
    return [n for first, last in re.findall(r"(\d+)(?:-(\d+))?", text) for n in range(int(first), int(last or first) + 1)]


NODES = numbers((NODE / "has_memory").read_text()) if (NODE / "has_memory").exists() else [0]


@contextlib.contextmanager
def on_node(node):
    """What is started here runs on CPUs of the node, and so its memory comes from there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers((NODE / f"node{node}/cpulist").read_text()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def system_call(number, *arguments):
    r = libc.syscall(ctypes.c_long(number), *arguments)
    if r < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def move_pages(pid, address, n, node=None):
    """The node of each page; with a node, after it was asked to go there. Negative: why it is not known, or did not go."""
    pages = (ctypes.c_void_p * n)(*range(address, address + n * PAGE, PAGE))
    nodes = None if node is None else (ctypes.c_int * n)(*[node] * n)
    status = (ctypes.c_int * n)()
    system_call(SYS_MOVE_PAGES, ctypes.c_long(pid), ctypes.c_ulong(n), pages, nodes, status, ctypes.c_int(MOVE_ALL if nodes else 0))
    return list(status)


def migrate_pages(pid, node):
    """What migratepages(8) does: all of a process, from all other nodes."""
    words = [(ctypes.c_ulong * 16)(mask) for mask in (sum(1 << k for k in NODES if k != node), 1 << node)]
    system_call(SYS_MIGRATE_PAGES, ctypes.c_long(pid), ctypes.c_ulong(1024 + 1), *words)


def _pagemap(pid, address, n):
    with open(f"/proc/{pid}/pagemap", "rb") as f:
        f.seek(address // PAGE * 8)
        return struct.unpack(f"<{n}Q", f.read(n * 8))


def frames_at(pid, address, n):
    return [e & ((1 << 55) - 1) if e >> 63 else 0 for e in _pagemap(pid, address, n)]


def slots_at(pid, address, n):
    """Whether each page is one of a segment."""
    return [bool(e >> 63 and e >> 61 & 1) for e in _pagemap(pid, address, n)]


@contextlib.contextmanager
def without_balancing():
    """The kernel's own moves would come between ours."""
    before = BALANCING.read_text() if BALANCING.exists() else None
    if before:
        BALANCING.write_text("0")
    try:
        yield
    finally:
        if before:
            BALANCING.write_text(before)
