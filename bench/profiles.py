"""Where the CPU time of a row goes: perf, from the beginning of what is measured (subjects.Meter) on."""
import os
import pathlib
import shutil
import subprocess
import tempfile

from sides import AGENT_THREAD, KsmSide  # first: it knows where measure is
from measure import Skip, spawn, wait_until
from subjects import Meter

FREQUENCY = 1999
# Threads that work for merging: the daemon's (its workers have its name), the agents', the kernel's.
THREADS = ("userksmd", AGENT_THREAD, "ksmd")
LINES = 14


class Profiler:
    """Inside it a machine-wide perf waits for the first Meter; top() then says where the threads that merge spent their time."""

    def __enter__(self):
        if not shutil.which("perf"):
            raise Skip("perf is not installed (package linux-perf)")
        self.pids = set()  # others may merge on this machine, too
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="userksm-perf-"))
        self.data, control, answers = (self.directory / name for name in ("data", "control", "answers"))
        for fifo in (control, answers):
            os.mkfifo(fifo)
        self.control, self.answers = os.open(control, os.O_RDWR), os.open(answers, os.O_RDWR | os.O_NONBLOCK)
        self.perf = spawn(["perf", "record", "-a", "-q", "-F", FREQUENCY, "-D", "-1", "--control", f"fifo:{control},{answers}", "-o", self.data],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Meter.begun = self.enable
        return self

    def _answered(self):
        if self.perf.poll() is not None:
            raise Skip("perf cannot record on this machine")
        try:
            return os.read(self.answers, 16)
        except BlockingIOError:
            return None

    def enable(self, meter):
        own = [meter.side.ksmd] if isinstance(meter.side, KsmSide) else meter.side.own_pids()
        self.pids.update(own, (s.pid for s in meter.running))
        os.write(self.control, b"enable\n")
        wait_until(self._answered, 10, "perf")

    def top(self):
        """[(percent of these threads' time, thread, function)], the dearest first."""
        if self.perf.poll() is None:
            self.perf.terminate()
            self.perf.wait()
        out = subprocess.run(["perf", "report", "-i", self.data, "--stdio", "--no-children", "-g", "none", "--percentage", "relative", "--comms",
                              ",".join(THREADS), "--pid", ",".join(map(str, self.pids)), "--sort", "comm,symbol", "-t", "\t"], capture_output=True, text=True).stdout
        found = []
        for line in out.splitlines():
            if line and not line.startswith("#"):
                percent, thread, function = (field.strip() for field in line.split("\t")[:3])
                found.append([float(percent.rstrip("%")), thread, function])
        return sorted(found, reverse=True)[:LINES]

    def __exit__(self, *exception):
        Meter.begun = None
        if self.perf.poll() is None:
            self.perf.kill()
        self.perf.wait()
        os.close(self.control)
        os.close(self.answers)
        shutil.rmtree(self.directory, ignore_errors=True)


def profile_row(row, plan, result):
    """One more run of the two sides, of which only this is kept: perf costs, and would be in the figures."""
    known, profile = result["rounds"][-1], {}
    sides = dict(row.sides(plan, known))
    for label in ("userksm", "ksm"):
        if label in sides:
            with Profiler() as profiler:
                row.measure(sides[label](), plan)
                profile[label] = profiler.top()
    return profile
