#!/usr/bin/env python3
"""MADV_DONTNEED without libc on merged pages reads zeros; the program is left alone from then on (design 6.4)."""
from harness import BUILD, Daemon, until
from test_shim_support import finish, merged_pages, spawn

with Daemon() as daemon:
    program = spawn([BUILD / "tests/e2e/test_shim_raw"], daemon.socket)
    try:
        assert program.stdout.readline() == "merged\n", program.stderr.read()
        assert program.stdout.readline() == "raw\n", program.stderr.read()
        until(lambda: daemon.stats()["raw_syscalls"] == 1, 10, "the daemon says that it leaves the program alone")
        before = merged_pages(program.pid)
        scans = daemon.stats()["full_scans"]
        until(lambda: daemon.stats()["full_scans"] >= scans + 10, 30, "ten more passes")
        after = merged_pages(program.pid)
        assert after <= before, f"{after} pages merged, {before} before: it was not left alone"
    finally:
        output = finish(program, 20, "the program with raw calls")
    print(output.strip())
