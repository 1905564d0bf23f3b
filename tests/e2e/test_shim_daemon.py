#!/usr/bin/env python3
"""The daemon killed 50 times in the middle of merging, hung, absent, late: programs compute the same bytes."""
import os
import random
import signal
import subprocess
import sys
import time

from harness import BUILD, Daemon, until
from test_shim_support import environment, finish, merged_pages, spawn

KILLS = 50
SECONDS = 25


def torture(daemon, seconds, seed, **extra):
    return spawn([BUILD / "tests/e2e/torture", f"--seconds={seconds}", f"--seed={seed}", "--threads=4",
                  f"--directory={daemon.directory}"], daemon.socket, **extra)


def killed(daemon):
    """Each daemon lives until it has merged something again, plus a moment that differs."""
    programs = [torture(daemon, SECONDS, seed, USERKSM_FAULT="any:random:1:200") for seed in (1, 2)]
    random.seed(7)
    kills = merging = 0
    while kills < KILLS and programs[0].poll() is None:
        until(daemon.answers, 10, "the daemon answers")
        start = time.monotonic()
        while time.monotonic() - start < 2 and daemon.stats()["merges"] == 0 and programs[0].poll() is None:
            time.sleep(0.005)
        merging += daemon.stats()["merges"] > 0
        time.sleep(random.random() * 0.05)
        daemon.stop(signal.SIGKILL)
        kills += 1
        daemon.start()
    for program in programs:
        print(finish(program, SECONDS + 60, "torture under a dying daemon").strip())
    print(f"killed {kills} times, {merging} of them after merges")
    assert kills >= KILLS // 4, f"only {kills} kills in {SECONDS} s"  # a busy machine
    assert merging >= kills // 2, f"only {merging} of {kills} daemons had merged anything"


def hung(daemon):
    program = torture(daemon, 6, 3)
    until(lambda: merged_pages(program.pid) > 100, 20, "the program is merged")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        # New programs start and end at a daemon that accepts no one.
        for _ in range(3):
            subprocess.run(["/bin/true"], env=environment(daemon.socket, USERKSM_MERGE_ANY="1"), check=True, timeout=10)
        print(finish(program, 60, "torture under a hung daemon").strip())
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def late(daemon):
    daemon.stop()
    program = torture(daemon, 12, 4)
    merged_at_first = merged_pages(program.pid)
    assert merged_at_first == 0
    daemon.start()
    until(lambda: merged_pages(program.pid) > 100, 30, "the program is merged once a daemon appears")
    print(finish(program, 60, "torture with a late daemon").strip())


def absent():
    for command in (["/bin/sh", "-c", "echo $((6 * 7))"], [sys.executable, "-c", "print(6 * 7)"]):
        out = subprocess.run(command, env=environment("/nonexistent/socket", USERKSM_MERGE_ANY="1"), check=True, timeout=30,
                             capture_output=True, text=True)
        assert out.stdout == "42\n" and out.stderr == "", (out.stdout, out.stderr)
    print("no daemon: programs run unchanged")


absent()
with Daemon() as d:
    late(d)
    hung(d)
with Daemon() as d:
    killed(d)
