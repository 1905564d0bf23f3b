#!/usr/bin/env python3
"""Calls on merged memory return what they return on plain memory, and leave what they leave: one program's output without the
shim, and with it when all that it works on is merged."""
import difflib
import os
import signal
import subprocess
import threading

from harness import BUILD, Daemon, until
from test_shim_support import environment

PROGRAM = BUILD / "tests/e2e/test_shim_merged"
SECONDS = 150
PASSES = 30


def output(argument, env, orders=None):
    """Lines of these names ask for something to be done, and are answered when it is."""
    program = subprocess.Popen([PROGRAM, argument], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    killer = threading.Timer(SECONDS, program.kill)
    killer.start()
    lines = []
    try:
        for line in program.stdout:
            lines.append(line.rstrip())
            if lines[-1] in ("passes", "hold", "go"):
                if orders:
                    orders[lines[-1]]()
                program.stdin.write("\n")
                program.stdin.flush()
        assert program.wait(20) == 0, f"exit status {program.returncode} after {lines[-3:]}: {program.stderr.read()}"
    finally:
        killer.cancel()
        program.kill()
        program.wait(20)
    return lines


def more_passes(daemon):
    """Or the agent has retired."""
    before = daemon.stats()["full_scans"]
    until(lambda: (n := daemon.stats())["full_scans"] > before + PASSES or n["clients"] == 0, 60, f"{PASSES} passes")


def hold(daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    state = lambda: open(f"/proc/{daemon.process.pid}/stat").read().rpartition(")")[2].split()[0]
    until(lambda: state() == "T", 60, "the daemon stands still")


os.environ["MALLOC_PERTURB_"] = "0"  # meson sets it: what realloc adds would not be the kernel's zeros
expected = output("plain", dict(os.environ))
with Daemon() as d:
    for mode, extra in {"advised": {}, "merge-any": {"USERKSM_MERGE_ANY": "1"}}.items():
        got = output("merged", environment(d.socket, **extra), {
            "passes": lambda: more_passes(d), "hold": lambda: hold(d),
            "go": lambda: d.process.send_signal(signal.SIGCONT)})
        difference = list(difflib.unified_diff(expected, got, "plain", mode, lineterm=""))
        assert not difference, f"{mode}:\n" + "\n".join(difference)
        print(f"{mode}: {len(got)} results as on plain memory")
