#!/usr/bin/python3
"""In a guest whose PID 1 is systemd: runs the cases of /plan from number userksm.first on, and prints what
tests/guest/boots.py reads.

usage: main.py [--list]      --list: all cases, on any machine"""
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import traceback

import cases
import old_kernel
from manager import Skipped

STATUS_SKIPPED = 77
RELEVANT_UNITS = ("userksmd.service", "userksmd.socket", "init.scope", "redis*", "cache*", "other*")
JOURNAL_LINES = 60


def on_alarm(number, frame):
    raise TimeoutError("the case's time is over")


def tainted():
    return open("/proc/sys/kernel/tainted").read().strip()


def run_case(function, seconds):
    """Returns (status, output)."""
    output = io.StringIO()
    status, taint, since = 0, tainted(), time.time()
    signal.alarm(seconds)
    with contextlib.redirect_stdout(output):
        try:
            function()
        except Skipped as e:
            status = STATUS_SKIPPED
            print(f"SKIP: {e}")
        except Exception:  # a case is a test: whatever it raises is its failure
            status = 1
            traceback.print_exc(file=output)
        signal.alarm(0)
        if tainted() != taint:
            status = "tainted"
            print(subprocess.run(["dmesg"], capture_output=True, text=True).stdout[-4000:])
        if status not in (0, STATUS_SKIPPED):
            print(subprocess.run(["ksmctl", "status"], capture_output=True, text=True).stdout)
            stats = subprocess.run(["ksmctl", "stats"], capture_output=True, text=True).stdout
            print(", ".join(line for line in stats.splitlines() if not line.endswith(" 0")))
            units = [word for unit in RELEVANT_UNITS for word in ("-u", unit)]
            print(subprocess.run(["journalctl", "--no-pager", "-q", "-o", "short-monotonic", f"--since=@{since:.0f}",
                                  f"--lines={JOURNAL_LINES}", *units], capture_output=True, text=True).stdout)
    return status, output.getvalue()


def main():
    suites = {"systemd": (cases.CASES, cases.reset), "old": (old_kernel.OLD_CASES, old_kernel.reset)}
    by_name = {f"{suite}/{f.__name__}": (f, reset) for suite, (functions, reset) in suites.items() for f in functions}
    if sys.argv[1:] == ["--list"]:
        print("\n".join(by_name))
        return
    signal.signal(signal.SIGALRM, on_alarm)
    first = int(re.search(r"userksm\.first=(\d+)", open("/proc/cmdline").read())[1])
    plan = [line.split("\t") for line in open("/plan")][first:]
    print(f"\nuserksm-guest kernel {os.uname().release}", flush=True)
    if plan[0][0] not in ("systemd/installed", "old/says_what_is_missing"):
        cases.install(until_failure=plan[0][0].startswith("old/"))
    for name, seconds, _ in plan:
        print(f"userksm-guest begin {name}", flush=True)
        function, reset = by_name[name]
        status, output = run_case(function, int(seconds))
        for line in output.splitlines():
            print("|", line, flush=True)
        print(f"userksm-guest end {name} {status}", flush=True)
        reset()
    print("userksm-guest done", flush=True)


if __name__ == "__main__":
    main()
