#!/usr/bin/python3
"""Plants one fault at a time in a copy of the source, and shows which test notices.

usage: run.py [--list | --check | --table | --summary] [--tree NAME] [--seconds N] [--survivors | --again] [NAME | FILE | FOLDER...]

  --list       name and meaning of every fault
  --check      only sees that each fault still fits the source (exactly one place); builds nothing
  --table      prints what the last runs found, for docs/planted-faults.md; runs nothing
  --summary    the same by source file, for docs/testing.md
  --tree NAME  the copy of the source to plant in: runs in different ones may go on at the same time
  --seconds N  begins no further fault after that; exits with 3 when some are left
  --survivors  those that survived before; --again: also those that were killed. Else only those that no run knows yet

faults.py has the list. For each fault its tests run in order until one fails: that one killed it, and is seen to pass without any fault. A
fault that survives all of them is a missing test and fails the run. Results are kept in build-planted/results, so a run can be made
in pieces."""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time

from fault import PROGRAMS, TESTS
from faults import FAULTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "build-planted"
RESULTS = WORK / "results"
# A fault may hang a test; none of them takes a third of this without one.
TEST_SECONDS = 100


def replaced(fault, source=ROOT):
    """The file's text with the fault in it."""
    text = (source / fault.file).read_text()
    found = text.count(fault.old)
    if found != 1:
        raise LookupError(f"{fault.name}: {found} places in {fault.file} fit, not one: the code has changed, look at it anew")
    return text.replace(fault.old, fault.new)


def failed_at_once(process, end):
    """Until the process ends, or time does."""
    said = b""
    while process.poll() is None and time.monotonic() < end:
        if select.select([process.stderr], [], [], 0.2)[0]:
            said = said[-16:] + os.read(process.stderr.fileno(), 4096)
            if b"[  FAILED  ]" in said:
                return True
    return False


class Tree:
    """A copy of the source to plant faults in, and its build."""

    def __init__(self, name):
        self.source, self.build_directory = WORK / name / "source", WORK / name / "build"
        self.passing = set()  # tests seen to pass without any fault
        self.copy_source()
        broken = self.build()
        if broken:
            sys.exit(broken)

    def copy_source(self):
        files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                               capture_output=True).stdout.decode().split("\0")
        for name in filter(None, files):
            source, target = ROOT / name, self.source / name
            if not source.is_file():
                continue
            if not target.exists() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                shutil.copymode(source, target)
        if not (self.build_directory / "build.ninja").exists():
            # A fault may leave a function or a variable unused: that is a warning.
            subprocess.run(["meson", "setup", "-Dwerror=false", self.build_directory, self.source], check=True, stdout=subprocess.DEVNULL)

    def build(self, *targets):
        """None, or what the compiler says."""
        result = subprocess.run(["ninja", "-j2", "-C", self.build_directory, *targets], capture_output=True, text=True)
        return None if result.returncode == 0 else result.stdout[-1500:]

    def program(self, test):
        """A cmocka program, which has no arguments, or None."""
        return next((p for suite in ("unit", "lib") for p in self.build_directory.glob(f"tests/{suite}/test_{test}")), None)

    def build_for(self, test):
        """What that test needs; the longer ones use everything."""
        program = self.program(test) or (PROGRAMS[test][0] if test in PROGRAMS else None)
        return self.build(os.path.relpath(self.build_directory / program, self.build_directory)) if program else self.build()

    def command(self, test):
        """(command, whether it says "[  FAILED  ]" as soon as something failed)."""
        if test in TESTS:
            return [self.source / TESTS[test][0], *TESTS[test][1:]], False
        if program := self.program(test):
            return [program], True
        if test in PROGRAMS:
            return [self.build_directory / PROGRAMS[test][0], *PROGRAMS[test][1:]], False
        return ["meson", "test", "-C", self.build_directory, "--no-rebuild", test], False

    def passes(self, test):
        """(True, "") or (False, how it failed)."""
        began = time.monotonic()
        command, says_at_once = self.command(test)
        mark = f"{os.getpid()}.{time.monotonic_ns()}"
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=WORK,
                                   stderr=subprocess.PIPE if says_at_once else subprocess.DEVNULL,
                                   env={**os.environ, "USERKSM_BUILD": str(self.build_directory), "USERKSM_PLANTED": mark})
        status = None
        try:
            if says_at_once and failed_at_once(process, began + TEST_SECONDS):
                status = 1
            else:
                status = process.wait(max(1, began + TEST_SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_all(f"USERKSM_PLANTED={mark}".encode())
            process.wait()
        if status is None:
            return False, "hangs"
        return status in (0, 77), f"{time.monotonic() - began:.0f} s"

    def plant(self, fault):
        """(killer, how), or (None, why not)."""
        target = self.source / fault.file
        original = target.read_text()
        try:
            target.write_text(replaced(fault, self.source))
        except LookupError as e:  # the source has changed since it was copied
            return None, str(e)
        try:
            for test in fault.tests:
                broken = self.build_for(test)
                if broken:
                    return None, f"does not compile: {broken}"
                survived, how = self.passes(test)
                if not survived:
                    return test, how
            return None, f"survived {', '.join(fault.tests)}"
        finally:
            target.write_text(original)

    def check_passes(self, test):
        if test in self.passing:
            return
        broken = self.build_for(test)
        if broken:
            sys.exit(broken)
        for _ in range(2):  # once more: the machine may be busy with something else
            passes, how = self.passes(test)
            if passes:
                self.passing.add(test)
                return
        sys.exit(f"{test} fails without any fault, {how}")


def end_all(mark):
    """Whatever a test has started and a fault has kept from ending, whichever session it is in: its environment tells."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


def stale(chosen, say=False):
    """How many do not fit the source any more."""
    n = len(chosen) - len({f.name for f in chosen})
    for f in chosen:
        try:
            replaced(f)
        except LookupError as e:
            n += 1
            if say:
                print(e)
    if say:
        print(f"{len(chosen) - n} of {len(chosen)} faults fit the source")
    return n


def digest(fault):
    return hashlib.sha256(repr((fault.file, fault.old, fault.new)).encode()).hexdigest()[:16]


def remember(fault, killer, how):
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / fault.name).write_text(json.dumps({"digest": digest(fault), "killer": killer, "how": how}))


def remembered(fault):
    """(killer, how), or None: no run knows this fault as it is now."""
    try:
        result = json.loads((RESULTS / fault.name).read_text())
    except OSError:
        return None
    return (result["killer"], result["how"]) if result["digest"] == digest(fault) else None


def print_table(chosen):
    print("| fault | what it does | breaks | in | killed by |\n|---|---|---|---|---|")
    for f in chosen:
        killer, how = remembered(f) or (None, "not run")
        found = f"`{killer}`, {how}" if killer else "**" + how.partition("\n")[0] + "**"
        print(f"| `{f.name}` | {f.text} | {f.breaks} | `{f.file}` | {found} |")


def print_summary(chosen):
    print("| source | faults | killed by |\n|---|---|---|")
    rows = {}
    for f in chosen:
        killer, _ = remembered(f) or ("not run", "")
        rows.setdefault(f.file, []).append(killer)
    for file, killers in sorted(rows.items()):
        counts = collections.Counter(killers).most_common()
        print(f"| `{file}` | {len(killers)} | {', '.join(f'{k} {n}' if k else f'**nobody** {n}' for k, n in counts)} |")
    killed = sum(k not in (None, "not run") for killers in rows.values() for k in killers)
    unknown = sum(remembered(f) is None for f in chosen)
    print(f"| all | {len(chosen)} | {killed} killed, {len(chosen) - killed - unknown} survived, {unknown} not run |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--tree", default="tree")
    parser.add_argument("--seconds", type=int, default=sys.maxsize)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    chosen = [f for f in FAULTS if not arguments.names or any(n in (f.name, f.file) or f.file.startswith(f"{n}/") for n in arguments.names)]
    if not chosen:
        sys.exit("no such fault")
    if arguments.list:
        for f in chosen:
            print(f"{f.name:28} {f.breaks}: {f.text}")
        return 0
    if arguments.table or arguments.summary:
        (print_table if arguments.table else print_summary)(chosen)
        return 0
    if stale(chosen) or arguments.check:
        return 1 if stale(chosen, True) else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing that a test started stays
    tree = Tree(arguments.tree)
    survivors, end = 0, time.monotonic() + arguments.seconds
    for f in chosen:
        known = remembered(f)
        if not arguments.again and known and (known[0] or not arguments.survivors):
            continue
        if time.monotonic() > end:
            return 3
        killer, how = tree.plant(f)
        if killer:
            tree.check_passes(killer)
        remember(f, killer, how)
        survivors += not killer
        print(f"{'killed  ' if killer else 'SURVIVED'} {f.name}: {f'by {killer}, {how}' if killer else how}", flush=True)
    print(f"{survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
