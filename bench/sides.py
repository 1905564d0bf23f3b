"""The sides of a comparison: no merging, userksm, kernel KSM. What each is set to, what it has saved, what it costs.

They are the engines of tests/e2e/workloads (which put back what they change on the machine) with a pass period and with
figures. CPU time comes from the kernel's clock of a process (nanoseconds, threads that have ended included)."""
import os
import pathlib
import re
import sys
import time

from figures import batch_for_share

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/e2e/workloads"))
from engines import KSM, KernelKsm, NoEngine, Userksm  # noqa: E402
from measure import wait_until  # noqa: E402

AGENT_THREAD = "userksm"
KSM_SLEEP_MSEC = 20
# One batch takes the whole pass: what a side does before the measurement begins need not last.
KSM_BATCH_ALL = 1_000_000
# What ksmd needs for a page, roughly, so that a pass with its own CPU time ends within the period.
KSM_PAGE_USEC = 3
LOOK_SECONDS = 0.2


def process_cpu_s(pid):
    """User and system time of a process, ended threads included (clock_getcpuclockid: CPUCLOCK_SCHED of a pid)."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def threads_cpu_s(pid, name):
    """CPU time of the threads of a process that have this name."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _user_system_s(stat):
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:13]]


def program_user_system_s(pid):
    """User and system time of a process without its agent. The kernel splits their exact sum by timer ticks, 250 to 1000 a second."""
    times = _user_system_s(pathlib.Path(f"/proc/{pid}/stat"))
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == AGENT_THREAD:
            times = [whole - agent for whole, agent in zip(times, _user_system_s(task / "stat"))]
    return times


def ksm_pages_to_scan(n_pages, period_s):
    """The batch with which ksmd walks so many pages once in a period, its own CPU time counted in."""
    asleep_ms = max(period_s * 1000 - n_pages * KSM_PAGE_USEC / 1000, period_s * 100)
    return max(1, round(n_pages * KSM_SLEEP_MSEC / asleep_ms))


class Plain(NoEngine):
    """Nothing merges, nobody is asked to."""
    label = "plain"
    offers = False
    settings_text = "no merging"

    def cpu_s(self):
        return 0.0

    def agents_cpu_s(self, pids):
        return 0.0

    def saved_pages(self):
        return 0


class UserksmSide(Userksm):
    label = "userksm"
    offers = True

    def __init__(self, period_s=None, **settings):
        if period_s:
            settings["pass_millisecs"] = round(period_s * 1000)
        super().__init__(settings)

    @property
    def settings_text(self):
        return ", ".join(f"{k}={v}" for k, v in self.settings.items()) or "defaults"

    def cpu_s(self):
        return process_cpu_s(self.daemon.pid)

    def agents_cpu_s(self, pids):
        return sum(threads_cpu_s(pid, AGENT_THREAD) for pid in pids)

    def known(self):
        """Pages that are merged, unique or zero: what a side has looked at."""
        s = self.stats()
        return s["pages_shared"] + s["pages_sharing"] + s["pages_unshared"] + s["ksm_zero_pages"]

    def saved_pages(self):
        s = self.stats()
        return s["pages_sharing"] + s["ksm_zero_pages"]

    def scans(self):
        return self.stats()["full_scans"]

    def waits(self):
        """Accesses that waited on a page in transition: [(at most so many microseconds, how many)], the last without a bound."""
        stats, found = self.stats(), []
        for name, n in stats.items():
            kind, bound = re.fullmatch(r"(?:wait_(le|gt)_(\d+)_usec)?.*", name).groups()
            if kind:
                found.append((int(bound) if kind == "le" else None, n))
        return found

    def set_period(self, period_s, n_pages):
        self.settings["pass_millisecs"] = round(period_s * 1000)
        self.ctl("set", f"pass_millisecs={self.settings['pass_millisecs']}")


class KsmSide(KernelKsm):
    """pages_to_scan either so that n_pages take period_s, or as given."""
    label = "ksm"
    offers = True

    def __init__(self, label=None, n_pages=None, period_s=None, pages_to_scan=KSM_BATCH_ALL, smart_scan=0, use_zero_pages=1):
        if period_s:
            pages_to_scan = ksm_pages_to_scan(n_pages, period_s)
        self.label = label or type(self).label
        self.SETTINGS = {"pages_to_scan": str(pages_to_scan), "sleep_millisecs": str(KSM_SLEEP_MSEC), "smart_scan": str(smart_scan),
                         "use_zero_pages": str(use_zero_pages)}

    @property
    def settings_text(self):
        return ", ".join(f"{k}={v}" for k, v in self.SETTINGS.items())

    @classmethod
    def for_share(cls, label, share, page_usec):
        """Set so that it takes this share of a CPU, when a page takes it so long."""
        return cls(label, pages_to_scan=batch_for_share(share, page_usec, KSM_SLEEP_MSEC))

    @staticmethod
    def mend():
        """Puts back what a run that was killed outright has left."""
        with KsmSide():
            pass

    def _value(self, name):
        return int((KSM / name).read_text())

    def cpu_s(self):
        return process_cpu_s(self.ksmd)

    def agents_cpu_s(self, pids):
        return 0.0

    def known(self):
        return sum(self._value(n) for n in ("pages_shared", "pages_sharing", "pages_unshared", "ksm_zero_pages"))

    def saved_pages(self):
        return self._value("pages_sharing") + self._value("ksm_zero_pages")

    def scans(self):
        return self._value("full_scans")

    def scanned(self):
        """Pages looked at, ever."""
        return self._value("pages_scanned")

    def set_period(self, period_s, n_pages):
        self.SETTINGS["pages_to_scan"] = str(ksm_pages_to_scan(n_pages, period_s))
        (KSM / "pages_to_scan").write_text(self.SETTINGS["pages_to_scan"])


def wait_saved(side, meter, n_pages, seconds, quiet_seconds=None):
    """Waits until so many pages are saved. Returns the way there: [wall seconds, CPU seconds of engine and agents, MiB saved] at each look.
    A side that saves less in all that time is an error; with quiet_seconds it is enough that it saves no more for so long."""
    curve = []
    best = last_rise = 0

    def look():
        nonlocal best, last_rise
        saved, cost = side.saved_pages(), meter.read()
        curve.append([round(cost["wall_s"], 3), round(cost["engine_cpu_s"] + cost["agents_cpu_s"], 4), round(saved / 256, 1)])
        if saved > best:
            best, last_rise = saved, cost["wall_s"]
        return saved >= n_pages or (quiet_seconds and cost["wall_s"] - last_rise >= quiet_seconds)
    wait_until(look, seconds, f"{side.label}: {n_pages:.0f} pages saved", LOOK_SECONDS)
    return curve


def wait_known(side, n_pages, seconds):
    wait_until(lambda: side.known() >= n_pages, seconds, f"{side.label}: {n_pages} pages looked at", LOOK_SECONDS)


def wait_scans(side, n, seconds):
    first = side.scans()
    wait_until(lambda: side.scans() >= first + n, seconds, f"{side.label}: {n} full scans", LOOK_SECONDS)
