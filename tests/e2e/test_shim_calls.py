#!/usr/bin/env python3
"""Interposed calls return what the kernel and libc return: one program's output with and without the shim."""
import difflib
import glob
import os
import subprocess

from harness import BUILD, skip
from test_shim_support import SHIM

PROGRAM = BUILD / "tests/e2e/test_shim_calls"


def output(env):
    run = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"exit status {run.returncode}: {run.stderr}"
    return run.stdout.splitlines()


if not os.path.exists("/sys/kernel/mm/ksm/run"):
    skip("the kernel has no KSM to compare with")
allocators = {"libc": ""} | {"jemalloc": path for path in glob.glob("/usr/lib/*-linux-gnu/libjemalloc.so.2")}
modes = {"shim": {}, "merge-any": {"USERKSM_MERGE_ANY": "1"}, "disabled": {"USERKSM_DISABLE": "1"}}
for name, allocator in allocators.items():
    base = dict(os.environ, USERKSM_SOCKET="/nonexistent", **({"TEST_PVALLOC": "1"} if name == "libc" else {}))
    expected = output(dict(base, LD_PRELOAD=allocator))
    for mode, extra in modes.items():
        got = output(dict(base, LD_PRELOAD=f"{SHIM} {allocator}", **extra))
        difference = list(difflib.unified_diff(expected, got, "kernel", mode, lineterm=""))
        assert not difference, f"{name}, {mode}:\n" + "\n".join(difference)
        print(f"{name}, {mode}: {len(got)} results as the kernel's")
