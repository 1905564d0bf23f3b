#!/usr/bin/env python3
"""A process ends with its last thread, though the agent's threads are still there: main thread first, and in a forked child."""
import subprocess
import sys

from harness import BUILD, Daemon, run
from test_shim_support import spawn, finish


def ends(mode, want):
    with Daemon() as d:
        program = spawn([BUILD / "tests/e2e/test_shim_exit", mode], d.socket, USERKSM_MERGE_ANY="1")
        said = finish(program, 20, mode)
        assert said.split() == want, said


def test_main_thread_first():
    ends("thread", ["thread", "atexit"])


def test_thread_of_a_forked_child():
    ends("fork", ["child", "atexit", "parent", "atexit"])


if __name__ == "__main__":
    run(test_main_thread_first, test_thread_of_a_forked_child)
