#!/usr/bin/env python3
"""The limits that a real machine sets: mappings of a process, descriptors of the daemon, memory of its control group, buffers of a
socket. Merging stops there, `ksmctl status` names the reason, no byte differs, and when there is room again all is merged."""
import os
import resource
import signal
import subprocess
import sys
import time

import arena as a  # finds tests/e2e
from harness import BUILD, FAST, Daemon, Groups, Victim, until

PAGES = 256
GROUP_BYTES = 40 << 20
MORE_THAN_GROUP = 48 << 20
RESERVE_BYTES = 16 << 20  # CORE_MEMORY_RESERVE_BYTES
SHARED_MIN_BYTES = 8 << 20  # the daemon itself takes the rest
MEMORY_SAYS = "memory limit of the daemon's control group"
NOBODY = 65534  # of root's own, the daemon lets in a few more
SKIPPED = []


def scattered(v, n, own_seed):
    """Every other page is common: each that is merged splits a mapping."""
    v.do("map", "m", n)
    v.do("fill", "m", 0, n, own_seed)
    for page in range(0, n, 2):
        v.do("fill", "m", page, 1, 1000 + page)


def merged(d, n, what, seconds=60):
    def look():
        return d.stats()["pages_sharing"] >= n
    try:
        until(look, seconds, what)
    except AssertionError:
        raise AssertionError(f"{what}: {d.stats()}")


def at_rest(d, seconds=1):
    """Counters, when what is under way has ended: nothing was merged or taken apart for so long."""
    seen, since = None, time.monotonic()

    def rests():
        nonlocal seen, since
        stats = d.stats()
        now = stats["merges"], stats["unshares"], stats["segment_bytes"]
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() > since + seconds and stats
    return until(rests, 60, "no more is merged")


def test_mappings():
    """A process that has all the mappings that the kernel gives one can split none: nothing of it is merged, all of it is right."""
    with Daemon("--run=0") as d:
        victims = []
        for i in range(2):
            v = Victim(d)
            scattered(v, PAGES, 1000000 * (i + 1))
            until(v.connected, 20, "connected")
            victims.append(v)
        n = victims[0].do("hoard")
        d.ctl("set", "run=1")
        until(lambda: "limit of VMAs" in d.ctl("status").stdout, 60, "the status says why")
        assert victims[0].say("check", "m") == "ok" and victims[1].say("check", "m") == "ok"
        assert d.stats()["pages_sharing"] < PAGES // 4, f"merged without mappings: {d.stats()}"
        victims[0].do("release")
        merged(d, PAGES // 2, "merged when there is room again")
        for v in victims:
            assert v.say("check", "m") == "ok"
            v.quit()
    return f"{n.split()[1]} mappings"


class FewFiles(Daemon):
    """With a low limit of descriptors, which it cannot raise."""
    FILES = 160

    def start(self):
        program = BUILD / "daemon/userksmd"
        self.process = subprocess.Popen(["prlimit", f"--nofile={self.FILES}:{self.FILES}", program, "--socket", self.socket, *FAST,
                                         *self.options], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        until(lambda: self.process.poll() is not None or self.answers(), 20, "the daemon answers")


def test_descriptors():
    """More processes than descriptors: some are refused, the others are merged; when those go, the refused come in."""
    with FewFiles("--open_to_all=yes") as d:
        os.chmod(d.directory, 0o755)
        victims = [Victim(d, user=NOBODY, group=NOBODY) for _ in range(16)]
        for v in victims:
            v.do("map", "m", PAGES)
            v.do("fill", "m", 0, PAGES, 1000)
        until(lambda: d.stats()["clients"] >= 2, 30, "some are let in")
        merged(d, PAGES, "those who came in are merged")
        inside = [v for v in victims if v.connected()]
        assert 2 <= len(inside) < len(victims), f"{len(inside)} of {len(victims)}"
        until(lambda: "connections refused" in d.ctl("status").stdout, 30, "the status says why")
        for v in inside:
            assert v.say("check", "m") == "ok"
            v.quit()
        rest = [v for v in victims if v not in inside]
        until(lambda: sum(v.connected() for v in rest) >= 2, 60, "the refused come in")
        merged(d, PAGES, "merged again")
        for v in rest:
            assert v.say("check", "m") == "ok"
            v.quit()
    return f"{len(inside)} of {len(victims)} processes with {FewFiles.FILES} descriptors"


def test_socket_buffers():
    """A process that does not read: what is for it waits, others are merged meanwhile, and it too when it reads again."""
    with Daemon() as d:
        victims = [Victim(d) for _ in range(3)]
        for v in victims:
            v.do("map", "m", PAGES)
            v.do("fill", "m", 0, PAGES, 1000)
        merged(d, 2 * PAGES, "merged")
        os.kill(victims[0].pid, signal.SIGSTOP)
        for turn in range(8):
            for v in victims[1:]:
                v.do("fill", "m", 0, PAGES, 100000 * (turn + 1))
            time.sleep(0.05)
        until(lambda: "parked" in d.ctl("status").stdout or d.stats()["clients"] == 2, 60, "the status says why")
        os.kill(victims[0].pid, signal.SIGCONT)
        victims[0].do("fill", "m", 0, PAGES, 800000)
        merged(d, 2 * PAGES, "merged when it reads again")
        for v in victims:
            assert v.say("check", "m") == "ok"
            v.quit()
    return "one process of three stopped"


class InGroup(Daemon):
    def __init__(self, groups):
        self.groups = groups
        super().__init__()

    def start(self):
        program = BUILD / "daemon/userksmd"
        enter = f'echo $$ > {self.groups.inner}/cgroup.procs && exec "$@"'
        self.process = subprocess.Popen(["sh", "-c", enter, "sh", program, "--socket", self.socket, *FAST, *self.options],
                                        stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        until(lambda: self.process.poll() is not None or self.answers(), 20, "the daemon answers")


def test_memory_group():
    """Shared pages are charged to the daemon's group. The daemon stops before the group's limit, which is never met, says so, and goes
    on when there is room."""
    groups = Groups()
    if not groups.directory:
        SKIPPED.append("no memory control group can be made here")
        return "skipped"
    groups.make(GROUP_BYTES)
    pages = MORE_THAN_GROUP // 4096
    try:
        with InGroup(groups) as d:
            victims = [Victim(d) for _ in range(2)]
            for v in victims:
                v.do("map", "m", pages)
                v.do("fill", "m", 0, pages, 1000)
            until(lambda: MEMORY_SAYS in d.ctl("status").stdout, 60, "the status says why")
            until(lambda: "nothing new is shared" in d.said(), 60, "the log says why")
            stats = at_rest(d)
            assert RESERVE_BYTES // 2 < stats["memory_left_bytes"] < RESERVE_BYTES + (4 << 20), stats
            assert SHARED_MIN_BYTES < stats["segment_bytes"] < GROUP_BYTES - RESERVE_BYTES, stats
            assert stats["failed_budget"] > 0, stats
            assert groups.times_met() == 0 and d.process.poll() is None
            assert all(v.say("check", "m") == "ok" for v in victims)
            groups.set_limit(8 * GROUP_BYTES)
            merged(d, pages, "all is merged when there is room", 180)
            assert MEMORY_SAYS not in d.ctl("status").stdout
            assert groups.times_met() == 0
            for v in victims:
                assert v.say("check", "m") == "ok"
                v.quit()
        return f"{stats['segment_bytes'] >> 20} MiB shared with a limit of {GROUP_BYTES >> 20} MiB, then {pages >> 8} MiB"
    finally:
        groups.remove()


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for test in (test_mappings, test_descriptors, test_socket_buffers, test_memory_group):
        if len(sys.argv) > 1 and test.__name__ not in sys.argv[1:]:
            continue
        started = time.monotonic()
        result = test()
        print(f"{test.__name__}: ok, {result} ({time.monotonic() - started:.1f} s)", flush=True)
    for reason in SKIPPED:
        print(f"not tested: {reason}")


if __name__ == "__main__":
    main()
