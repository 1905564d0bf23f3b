"""Boots guests until each case has a result. What a guest prints on its console about the cases is read here:

    userksm-guest kernel RELEASE
    userksm-guest begin NAME
    | output of the case
    userksm-guest end NAME STATUS
    userksm-guest done"""
import dataclasses
import re
import subprocess
import time

from guest import qemu_command
from measure import spawn, stop



@dataclasses.dataclass(frozen=True)
class Machine:
    cpus: int = 2
    memory_mib: int = 2048
    nodes: int = 1

    def __str__(self):
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.cpus} CPUs, {self.memory_mib} MiB{nodes}"


# Emulation on two busy cores: only bounds. A test gets its own timeout times SLOWER; the guest ends it then, and when even
# that does not happen (a process that the kernel cannot end) the guest goes HUNG_SECONDS later.
BOOT_SECONDS = 240
SLOWER = 3
HUNG_SECONDS = 180
# Of a guest that ends before it has begun anything: about one boot in thirty of an emulated machine on a busy one. What is tested comes later.
BOOT_TRIES = 3
LINE = re.compile(r"userksm-guest (kernel|begin|end|done) ?(\S*) ?(\w*)$")


@dataclasses.dataclass
class Case:
    name: str
    seconds: int
    command: list = dataclasses.field(default_factory=list)
    environment: dict = dataclasses.field(default_factory=dict)
    shows: bool = False  # what it prints is of interest when it passes, too


class Results:
    def __init__(self, verbose):
        self.verbose = verbose
        self.passed = self.failed = self.skipped = 0

    def add(self, case, status, output, seconds):
        shown = [line[2:] for line in output if line.startswith("| ")]
        if status == "77":
            self.skipped += 1
            said = [line for line in shown if line.lower().startswith("skip")]
            print(f"SKIPPED {case.name}: {(said or shown or ['no reason given'])[-1]}", flush=True)
        elif status == "0":
            self.passed += 1
            print(f"ok      {case.name} ({seconds:.1f} s)", flush=True)
            for line in shown:  # what cmocka skips inside a test that passes is of interest, too
                if self.verbose or case.shows or "SKIPPED" in line:
                    print(f"        {line}", flush=True)
        else:
            self.fail(case, f"exit status {status} ({seconds:.1f} s)", shown)

    def fail(self, case, why, output):
        self.failed += 1
        print(f"FAILED  {case.name}: {why}", flush=True)
        for line in output:
            print(f"        {line}", flush=True)


class Guest:
    """One boot: the cases from `first` on, until the guest is done, dies, or hangs."""

    def __init__(self, directory, kernel, image, cases, first, append, machine):
        self.cases, self.next, self.machine = cases, first, machine
        self.console = directory / f"console.{first}"
        self.console.write_text("")  # of a boot before this one
        argv = qemu_command(kernel, image, self.console, machine.memory_mib, f"userksm.first={first} {append}", machine.cpus,
                            machine.nodes)
        self.booted = time.monotonic()
        self.process = spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def run(self, results, ends_at, may_boot_again):
        """Returns the number of cases that have a result."""
        first = self.next
        output, running, done = [], False, False
        case_ends_at = time.monotonic() + BOOT_SECONDS
        with open(self.console, errors="replace", newline="\n") as console:
            partial = ""
            while not done:
                ended = self.process.poll() is not None
                partial += console.read()
                *lines, partial = partial.split("\n")
                for line in (line.rstrip("\r") for line in lines):
                    m = LINE.search(line)
                    if not m:
                        output.append(line)
                    elif m[1] == "kernel":
                        took = time.monotonic() - self.booted
                        print(f"guest with Linux {m[2]}, {self.machine}, up in {took:.0f} s", flush=True)
                    elif m[1] == "begin":
                        case, begun, running, output = self.cases[self.next], time.monotonic(), True, []
                        case_ends_at = begun + case.seconds + HUNG_SECONDS
                    elif m[1] == "end":
                        results.add(case, m[3], output, time.monotonic() - begun)
                        self.next, running = self.next + 1, False
                        case_ends_at = time.monotonic() + HUNG_SECONDS
                    done = done or m is not None and m[1] == "done"
                if done or not lines and (ended or time.monotonic() > min(case_ends_at, ends_at)):
                    break
                if not lines:
                    time.sleep(0.05)
        stop([self.process])
        if not done and ended and not running and self.next == first and may_boot_again:
            print("the guest ended before it began a test: once more", *output[-10:], sep="\n        ", flush=True)
        elif not done and self.next < len(self.cases):
            why = "the guest ended" if ended else "the guest hung" if time.monotonic() < ends_at else "out of time"
            results.fail(self.cases[self.next], why if running else f"{why} before the test began", output[-60:])
            self.next += 1
        return self.next


def run(directory, kernel, image, cases, results, ends_at, append="", machine=Machine()):
    done = tries = 0
    while done < len(cases) and time.monotonic() < ends_at:
        tries += 1
        before, done = done, Guest(directory, kernel, image, cases, done, append, machine).run(results, ends_at, tries < BOOT_TRIES)
        tries = 0 if done > before else tries
    for case in cases[done:]:
        results.fail(case, "not begun in the time of the whole run", [])
