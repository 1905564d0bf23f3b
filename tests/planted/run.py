#!/usr/bin/python3
"""Plants one fault at a time in a copy of the source, and shows which test notices.

usage: run.py [--list | --check] [--from NAME] [--table FILE] [NAME...]

  --list        name and meaning of every fault
  --check       only sees that each fault still fits the source (exactly one place); builds nothing
  --from NAME   begins there
  --table FILE  writes the result as a table for docs/testing.md

faults.py has the list. For each fault its tests run in order until one fails: that one killed it. A fault that survives all of them is a
missing test and fails the run. Without any fault the tests pass: that is checked first, for the tests that are asked for."""
import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from faults import FAULTS, TESTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build-planted"
SOURCE, BUILD = WORK / "source", WORK / "build"
# A fault may hang a test; none of them takes a third of this without one.
TEST_SECONDS = 150


def replaced(fault):
    """The file's text with the fault in it."""
    text = (ROOT / fault.file).read_text()
    found = text.count(fault.old)
    if found != 1:
        raise LookupError(f"{fault.name}: {found} places in {fault.file} fit, not one: the code has changed, look at it anew")
    return text.replace(fault.old, fault.new)


def copy_source():
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True).stdout.decode().split("\0")
    for name in filter(None, files):
        source, target = ROOT / name, SOURCE / name
        if not source.is_file():
            continue
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    if not (BUILD / "build.ninja").exists():
        # A fault may leave a function or a variable unused: that is a warning.
        subprocess.run(["meson", "setup", "-Dwerror=false", BUILD, SOURCE], check=True, stdout=subprocess.DEVNULL)


def build():
    result = subprocess.run(["ninja", "-C", BUILD], capture_output=True, text=True)
    return None if result.returncode == 0 else result.stdout[-1500:]


def end_all(mark):
    """Whatever a test has started and a fault has kept from ending, whichever session it is in: its environment tells."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


def passes(test):
    """(True, "") or (False, how it failed)."""
    began = time.monotonic()
    command = TESTS.get(test)
    if command is None:
        command = ["meson", "test", "-C", BUILD, "--no-rebuild", test]
    else:
        command = [SOURCE / command[0], *command[1:]]
    mark = f"USERKSM_PLANTED={os.getpid()}.{time.monotonic_ns()}"
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=WORK,
                               env={**os.environ, "USERKSM_BUILD": str(BUILD), "USERKSM_PLANTED": mark.split("=")[1]})
    try:
        status = process.wait(TEST_SECONDS)
    except subprocess.TimeoutExpired:
        status = None
    end_all(mark.encode())
    process.wait()
    if status is None:
        return False, "hangs"
    return status in (0, 77), f"fails after {time.monotonic() - began:.0f} s"


def plant(fault):
    """(killer, how), or (None, why not)."""
    target = SOURCE / fault.file
    original = target.read_text()
    target.write_text(replaced(fault))
    try:
        broken = build()
        if broken:
            return None, f"does not compile: {broken}"
        for test in fault.tests:
            survived, how = passes(test)
            if not survived:
                return test, how
        return None, f"survived {', '.join(fault.tests)}"
    finally:
        target.write_text(original)


def write_table(path, rows):
    with open(path, "w") as f:
        f.write("| what is broken | fault | killed by |\n|---|---|---|\n")
        for fault, killer, how in rows:
            f.write(f"| {fault.breaks} | {fault.text} | {f'{killer}, {how}' if killer else '**' + how + '**'} |\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--from", dest="first")
    parser.add_argument("--table")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    chosen = [f for f in FAULTS if not arguments.names or f.name in arguments.names]
    if arguments.first:
        chosen = chosen[[f.name for f in chosen].index(arguments.first):]
    unknown = set(arguments.names) - {f.name for f in FAULTS}
    if unknown:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}")
    if arguments.list:
        for f in chosen:
            print(f"{f.name:28} {f.breaks}: {f.text}")
        return 0
    stale = []
    for f in chosen:
        try:
            replaced(f)
        except LookupError as e:
            stale.append(str(e))
    if stale or arguments.check:
        print(*stale, sep="\n")
        print(f"{len(chosen) - len(stale)} of {len(chosen)} faults fit the source")
        return 1 if stale else 0
    copy_source()
    broken = build()
    if broken:
        sys.exit(broken)
    for test in sorted({t for f in chosen for t in f.tests}):
        ok, how = passes(test)
        if not ok:
            sys.exit(f"{test} {how} without any fault")
    rows = []
    for f in chosen:
        killer, how = plant(f)
        rows.append((f, killer, how))
        print(f"{'killed  ' if killer else 'SURVIVED'} {f.name}: {f'by {killer}, {how}' if killer else how}", flush=True)
        if arguments.table:
            write_table(arguments.table, rows)
    survivors = sum(killer is None for _, killer, _ in rows)
    print(f"{len(rows) - survivors} of {len(rows)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
