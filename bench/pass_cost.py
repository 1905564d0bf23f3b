#!/usr/bin/python3
"""What watching costs: a process with 1 GiB of unique pages that nobody writes, offered with MADV_MERGEABLE.

usage: pass_cost.py [--mib N] [--seconds N] [userksm|ksm]...

After the first passes (reading, hashing, settling) the CPU time of the daemon, or of ksmd, is taken over some seconds,
with the full passes made meanwhile. Each engine at its own pace: userksm as it comes, ksmd without a pause and without
smart_scan, so that CPU seconds per pass is what is compared."""
import argparse
import mmap
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/e2e/workloads"))
from engines import KSM, KernelKsm, Userksm  # noqa: E402
from measure import Skip, cpu_seconds, spawn, stop, wait_until  # noqa: E402

MADV_MERGEABLE = 12
SETTLE_SECONDS = 300


def holder(mib):
    """The child: fills, offers, says so, and waits."""
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, mib << 20, 1 << 20):
        memory[at:at + (1 << 20)] = os.urandom(1 << 20)
    memory.madvise(MADV_MERGEABLE)
    print("ready", flush=True)
    sys.stdin.read()


def full_scans(engine):
    return engine.stats()["full_scans"] if isinstance(engine, Userksm) else int((KSM / "full_scans").read_text())


def unshared(engine):
    if isinstance(engine, Userksm):
        return engine.stats()["pages_unshared"]
    return int((KSM / "pages_unshared").read_text())


def measure(engine, mib, seconds):
    with engine:
        process = spawn([sys.executable, __file__, "--holder", "--mib", mib], engine.environment(False),
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            process.stdout.readline()
            engine.start_merging()
            # Nearly all: the interpreter's own pages are none of ours.
            wait_until(lambda: unshared(engine) >= 0.99 * mib * 256, SETTLE_SECONDS, "every page known", 0.5)
            pid = engine.own_pids()[0] if engine.own_pids() else engine.ksmd
            first_scans = wait_until(lambda: full_scans(engine), SETTLE_SECONDS, "a full pass", 0.2)
            wait_until(lambda: full_scans(engine) > first_scans, SETTLE_SECONDS, "another full pass", 0.2)
            cpu, scans, begin = cpu_seconds(pid), full_scans(engine), time.monotonic()
            time.sleep(seconds)  # the window of the measurement
            cpu, scans, elapsed = cpu_seconds(pid) - cpu, full_scans(engine) - scans, time.monotonic() - begin
        finally:
            stop([process])
    per_pass = f"{cpu / scans * 1000:9.2f} ms a pass" if scans else "no full pass meanwhile"
    print(f"{engine.name:8} {mib} MiB, nothing written: {cpu:6.2f} s of CPU in {elapsed:.0f} s "
          f"({100 * cpu / elapsed:.2f} %), {scans} passes, {per_pass}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engines", nargs="*", metavar="userksm|ksm")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--holder", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.holder:
        return holder(arguments.mib)
    for name in arguments.engines or ["userksm", "ksm"]:
        try:
            measure(Userksm() if name == "userksm" else KernelKsm(), arguments.mib, arguments.seconds)
        except Skip as e:
            print(f"skip: {name}: {e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
