"""Subjects (bench/subject.c) of one round under one side, and a meter of what happens to them."""
import contextlib
import json
import subprocess
import time

from sides import process_cpu_s  # first: it knows where measure is
from measure import BUILD, Wrong, spawn, stop

SUBJECT = BUILD / "bench/subject"
PAGES_PER_MIB = 256


def area(kind, mib, stride=None):
    return f"{kind}:{mib * PAGES_PER_MIB}" + (f":{stride}" if stride else "")


class Subject:
    def __init__(self, side, instance, areas):
        self.side = side
        self.process = spawn(side.command([SUBJECT, instance, *areas], False), side.environment(False), stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise Wrong(f"{self.side.label}: a subject ended with status {self.process.wait()}")
        return json.loads(line)

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line):
        self.tell(line)
        return self.answer()

    def offer(self):
        return self.ask("offer") if self.side.offers else None

    def cpu_s(self):
        return process_cpu_s(self.pid)


def warm(mib):
    """Touches and frees so much memory, that a virtual machine's host has given when a measurement needs it: what the host does for a page
    costs more than anything measured here, and comes to whoever happens to be first."""
    subprocess.run([SUBJECT, "0", area("unique", mib)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


@contextlib.contextmanager
def subjects(side, n, areas, first=0):
    """n of them, filled and offered. At the end every byte is looked at: figures of a wrong result are worth nothing."""
    running = []
    try:
        for instance in range(first, first + n):
            running.append(Subject(side, instance, areas))
        for s in running:
            s.answer()
        for s in running:
            s.offer()
        yield running
        for s in running:
            s.tell("check")
        for s in running:
            s.answer()
    finally:
        for s in running:
            s.process.stdin.close()
            s.process.stdout.close()
        stop([s.process for s in running])


class Meter:
    """CPU and wall time from now on."""
    begun = None  # called with each that begins (profiles.py)

    def __init__(self, side, running):
        self.side, self.running = side, running
        if Meter.begun:
            Meter.begun(self)
        self.begin = self._now()

    def _now(self):
        agents = self.side.agents_cpu_s([s.pid for s in self.running])
        return {"wall_s": time.monotonic(), "engine_cpu_s": self.side.cpu_s(), "agents_cpu_s": agents,
                "subjects_cpu_s": sum(s.cpu_s() for s in self.running) - agents}

    def read(self):
        now = self._now()
        return {name: now[name] - self.begin[name] for name in now}
