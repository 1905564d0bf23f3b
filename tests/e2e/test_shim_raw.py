#!/usr/bin/env python3
"""MADV_DONTNEED without libc on merged pages reads zeros, mremap without it takes them along; the program is left alone from
then on (design 6.4)."""
from harness import BUILD, Daemon, until
from test_shim_support import finish, merged_pages, spawn


def start(daemon, kind):
    program = spawn([BUILD / "tests/e2e/test_shim_raw", kind], daemon.socket)
    for line in ("merged\n", "raw\n"):
        assert program.stdout.readline() == line, program.stderr.read()
    return program


for kind in "discards", "moves":
    with Daemon() as daemon:
        first = start(daemon, kind)
        until(lambda: daemon.stats()["raw_syscalls"] == 1, 10, "the daemon says that it leaves the program alone")
        before = merged_pages(first.pid)
        # Meanwhile it writes equal pages again. A second one is merged in that time, so the first would have been.
        second = start(daemon, kind)
        after = merged_pages(first.pid)
        assert after <= before, f"{after} pages merged, {before} before: it was not left alone"
        for program in first, second:
            print(kind, finish(program, 20, "the program with raw calls").strip())
