"""What else ran on the machine during a measurement."""
import os
import pathlib
import resource
import time

from sides import process_cpu_s  # first: it knows where engines is
from engines import ksmd_pid


def _busy_s(cpus):
    """Time that the processors were not idle, taken by the host included (the kernel counts idle time exactly, all else by ticks)."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    idle, iowait = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[4:6])
    return time.monotonic() * cpus - idle - iowait


def _own_s():
    """Of this process, its children that have ended, and theirs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Others:
    """From its making on; all processes of the measurement have ended before and after."""

    def __init__(self):
        self.cpus, self.ksmd = os.cpu_count(), ksmd_pid()
        self.begin_s, self.used_s = time.monotonic(), self._others_s()

    def _others_s(self):
        return _busy_s(self.cpus) - _own_s() - (process_cpu_s(self.ksmd) if self.ksmd else 0)

    def share(self):
        """Of the processors' time, that neither the measurement nor ksmd took."""
        return max(0.0, (self._others_s() - self.used_s) / (time.monotonic() - self.begin_s) / self.cpus)
