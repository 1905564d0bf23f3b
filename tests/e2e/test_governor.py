#!/usr/bin/env python3
"""The governor, seen from outside: what a file of memory pressure brings about, and what the daemon's threads really use."""
import os
import pathlib
import tempfile
import time

from harness import Daemon, Victim, run, until

REST, IDLE, WORK, HURRY = 1, 2, 3, 4
PAGES = 1024
TICKS = os.sysconf("SC_CLK_TCK")


class Pressure:
    """A file that reads like /proc/pressure/memory."""
    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="userksm-pressure-"), "memory")
        self.set(0)

    def set(self, percent):
        # In place: the daemon holds the file open.
        with open(self.path, "r+" if self.path.exists() else "w") as f:
            f.write(f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
            f.truncate()


def state(daemon):
    return daemon.stats()["governor"]


def twins(daemon):
    victims = [Victim(daemon) for _ in range(2)]
    for v in victims:
        v.do("map", "m", PAGES)
        v.do("fill", "m", 0, PAGES, 77)
        until(v.connected, 10, "connected")
    return victims


def test_only_under_pressure():
    pressure = Pressure()
    with Daemon(f"--pressure_file={pressure.path}", "--pressure_permille=50", "--only_under_pressure=1") as d:
        victims = twins(d)
        assert state(d) == REST, d.stats()
        assert "it rests: only_under_pressure is set, and memory is not short: processes waited for it 0.0 % of the last 10 s" in \
            d.ctl("status").stdout
        # Nothing but what is asked for; again when the agents were busy, or a page was not at rest.
        def merged_on_demand():
            for v in victims:
                v.do("merge", "m")
            return d.stats()["pages_sharing"] == PAGES
        until(merged_on_demand, 30, "merged on demand")
        assert d.stats()["full_scans"] == 0, d.stats()
        for v in victims:
            v.do("map", "n", PAGES)
            v.do("fill", "n", 0, PAGES, 50000)
        pressure.set(60)
        until(lambda: d.stats()["pages_sharing"] == 2 * PAGES, 30, "merged under pressure")
        assert state(d) == HURRY, d.stats()
        text = d.ctl("status").stdout
        assert "memory is short: processes waited for it 60.0 % of the last 10 s (short from 5.0 % on)" in text, text
        assert "memory is short: processes waited for it 60.0 % of the last 10 s" in d.said()
        pressure.set(0)
        until(lambda: state(d) == REST, 10, "at rest again")
        before = d.stats()["full_scans"]
        for v in victims:
            v.do("poke", "m", 0, PAGES)
        time.sleep(0.5)  # some fifty passes that must not be
        assert d.stats()["full_scans"] <= before + 1, d.stats()
        d.ctl("set", "only_under_pressure=no")
        until(lambda: state(d) in (IDLE, WORK), 10, "off")
        until(lambda: d.stats()["full_scans"] > before + 2, 10, "passes again")
        for v in victims:
            v.do("check", "m")
            v.do("check", "n")
            v.quit()


def test_nothing_says_so():
    with Daemon("--pressure_file=/nonexistent/memory", "--pressure_permille=50", "--only_under_pressure=yes") as d:
        assert "/nonexistent/memory: memory pressure is not known: No such file or directory" in d.said(), d.said()
        victim = Victim(d)
        until(victim.connected, 10, "connected")
        s = d.stats()
        assert s["memory_pressure_permille"] == -1 and 0 <= s["memory_available_permille"] <= 1000, s
        text = d.ctl("status").stdout
        assert "how long processes wait for it is not known (pressure_file)" in text, text
        assert "! only_under_pressure is set, but nothing says when memory is short" in text, text
        # MemAvailable can say it alone.
        d.ctl("set", "low_memory_permille=1000")
        until(lambda: state(d) == HURRY, 10, "low memory")
        victim.quit()


def cpu_seconds(daemon):
    fields = pathlib.Path(f"/proc/{daemon.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def used(daemon, seconds=3):
    """Of a core, in thousandths, as the kernel counts it."""
    begin, cpu = time.monotonic(), cpu_seconds(daemon)
    time.sleep(seconds)
    return (cpu_seconds(daemon) - cpu) / (time.monotonic() - begin) * 1000


def test_idle_cap():
    """Passes as fast as they go (10 ms) over pages that have no equal. Idle, the daemon keeps to idle_cpu_permille."""
    cap = 5
    with Daemon() as d:
        victim = Victim(d)
        victim.do("map", "m", 16 * PAGES)
        victim.do("fill", "m", 0, 16 * PAGES, 1000000)
        until(victim.connected, 10, "connected")
        until(lambda: d.stats()["pages_unshared"] == 16 * PAGES, 30, "all read")
        until(lambda: state(d) == IDLE, 10, "idle")
        free = used(d)
        d.ctl("set", f"idle_cpu_permille={cap}")
        until(lambda: state(d) == IDLE, 60, "idle again")
        assert d.stats()["cpu_allowed_permille"] == cap
        text = d.ctl("status").stdout
        assert "it idles: nothing is new, and the last full scan found next to nothing to merge" in text, text
        assert f"scanning takes at most 0.{cap} % of a core" in text, text
        capped = min(used(d) for _ in range(2))  # at first it may run ahead by 50 ms
        print(f"     {free:.1f} thousandths of a core without the cap, {capped:.1f} with {cap}")
        # The rest of the daemon is counted too: ticks, this test's questions, the clock's granularity, sanitizers.
        assert capped < max(4 * cap, free / 4), f"{capped:.1f}"
        # What is new is work at once.
        other = twins(d)
        until(lambda: d.stats()["pages_sharing"] == PAGES, 30, "merged")
        for v in (victim, *other):
            v.do("check", "m")
            v.quit()


run(test_only_under_pressure, test_nothing_says_so, test_idle_cap)
