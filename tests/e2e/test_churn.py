#!/usr/bin/env python3
"""Long life: processes rewrite 30 % of their memory again and again; what userksm saves and what it takes level off.

usage: test_churn.py BUILD [--rounds N] [--pages N] [--seed N] [--no-heap]

Each round rewrites runs of 1 to 64 pages, the same places in every process: half to new values common to all, a sixth each to
values of this process alone, to common values after a discard, and to zeros. Then passes go by until 90 % of what an ideal merger would
save is saved, by the sum of PSS. What userksm takes for it is asked of the kernel: mappings, memory of the memfds, memory of the
daemon. The last quarter of the rounds must take no more than the one before. Rounds are timed by passes of the daemon, not by the
clock, so a busy machine only takes longer."""
import argparse
import os
import random
import sys
from collections import Counter
from statistics import median

from harness import Daemon, Victim, rollup, run, until

VICTIMS, PASSES = 3, 40
CLEAN = "--stable_node_chains_prune_millisecs=20"  # two passes, as by default
CAP = 256
POOL_RUNS = 48  # common values come from here as often as they are new
RUN_MAX = 64
SEGMENT_KIB = 2048
SAVED, PERCENT = "saved of ideal, percent", 90


def memfds_kib(pid):
    """Memory of the memfds that a process has open."""
    kib = 0
    for fd in os.scandir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(fd.path).startswith("/memfd:"):
                kib += os.stat(fd.path).st_blocks // 2
        except FileNotFoundError:
            pass  # closed meanwhile
    return kib


def n_maps(pid):
    with open(f"/proc/{pid}/maps", "rb") as f:
        return f.read().count(b"\n")


class Churn:
    def __init__(self, daemon, pages, seed):
        self.daemon, self.pages, self.random = daemon, pages, random.Random(seed)
        self.fresh_value = 1 << 40
        self.victims = [Victim(daemon) for _ in range(VICTIMS)]
        self.contents = [[0] * pages for _ in range(VICTIMS)]
        until(lambda: all(v.connected() for v in self.victims), 20, "connected")
        self.pss_before = self.pss()
        for v in self.victims:
            v.do("map", "m", pages)
        self.fill_common(0, pages)

    def pss(self):
        return sum(v.pss() for v in self.victims)

    def new_values(self, n):
        self.fresh_value += n
        return self.fresh_value - n

    def fill(self, k, at, n, value):
        self.victims[k].do("fill", "m", at, n, value)
        self.contents[k][at:at + n] = [value + i if value else 0 for i in range(n)]

    def fill_common(self, at, n):
        value = (1 << 32) + RUN_MAX * self.random.randrange(POOL_RUNS) if n <= RUN_MAX and self.random.random() < 0.5 \
            else self.new_values(n)
        for k in range(VICTIMS):
            self.fill(k, at, n, value)

    def rewrite(self):
        left = self.pages * 3 // 10
        while left > 0:
            n = self.random.randint(1, RUN_MAX)
            at, what = self.random.randrange(self.pages - n), self.random.randrange(6)
            left -= n
            if what == 3:
                for k in range(VICTIMS):
                    self.fill(k, at, n, self.new_values(n))
            elif what == 4:
                for v in self.victims:
                    v.do("discard", "m", at, n)
                self.fill_common(at, n)
            elif what == 5:
                for k in range(VICTIMS):
                    self.fill(k, at, n, 0)
            else:
                self.fill_common(at, n)

    def ideal(self):
        """Pages that a merger with this cap can save."""
        count = Counter(c for contents in self.contents for c in contents)
        saved = count.pop(0, 0)
        return saved + sum(n - -(-n // CAP) for n in count.values())

    def pass_by(self, passes):
        end = self.daemon.stats()["full_scans"] + passes
        while self.daemon.stats()["full_scans"] < end:
            for v in self.victims:
                assert v.process.poll() is None, "a victim died"

    def check(self):
        for v in self.victims:
            assert v.say("check", "m") == "ok", "bytes differ"

    def pss_at_most(self):
        """While an agent has its witness (lib/witness.h) pages are shared with that, and PSS is too small."""
        seen = []
        for _ in range(4):
            seen.append(self.pss())
            self.pass_by(1)
        return max(seen)

    def look(self):
        s, pid = self.daemon.stats(), self.daemon.process.pid
        private = VICTIMS * self.pages * 4 + self.pss_before
        return {
            SAVED: 100 * (private - self.pss_at_most()) / (self.ideal() * 4),
            "mappings": sum(n_maps(v.pid) for v in self.victims),
            "segments KiB": memfds_kib(pid),
            "of them dead": s["dead_bytes"] // 1024,
            "metadata KiB": s["metadata_bytes"] // 1024,
            "daemon's heap KiB": rollup(pid, "Anonymous"),
        }

    def settle(self):
        """Passes go by until what was written has come back, and less of the segments is dead than live, but for what one segment is."""
        seen = []

        def has_come_back():
            self.pass_by(PASSES)
            seen.append(self.look())
            x = seen[-1]
            return x[SAVED] >= PERCENT and x["of them dead"] <= x["segments KiB"] / 2 + SEGMENT_KIB
        try:
            until(has_come_back, 60, "merged again")
        except AssertionError as e:
            raise AssertionError(f"{e}: {seen[-1]}, {self.daemon.stats()}")
        return seen[-1]


def levels_off(seen, has_heap):
    """Nothing drifts: medians of the third and the last quarter. The slack is what one segment, or noise, is."""
    n = len(seen)

    def of(quarter, what):
        return median(x[what] for x in seen[n * (quarter - 1) // 4:n * quarter // 4])
    for what in seen[0]:
        print(f"   {what:24}" + " ".join(f"{of(q, what):10.1f}" for q in (1, 2, 3, 4)))
    for what, slack in (("mappings", 100), ("segments KiB", 2 * SEGMENT_KIB), ("of them dead", 2 * SEGMENT_KIB), ("metadata KiB", 128),
                        ("daemon's heap KiB", 1024)):
        if what != "daemon's heap KiB" or has_heap:
            assert of(4, what) <= of(3, what) * 1.1 + slack, f"{what} grows: {of(3, what)}, then {of(4, what)}"


def churn(rounds, pages, seed, has_heap):
    print(f"   seed {seed}, {rounds} rounds, {VICTIMS} processes of {pages} pages; medians of the quarters:", flush=True)
    with Daemon(CLEAN) as d:
        c, seen = Churn(d, pages, seed), []
        c.settle()
        for i in range(rounds):
            c.rewrite()
            seen.append(c.settle())
            if i % 10 == 9:
                c.check()
        c.check()
        levels_off(seen, has_heap)
        for v in c.victims:
            v.quit()
        until(lambda: d.stats()["segments"] == 0, 30, "the store is empty")
        assert memfds_kib(d.process.pid) <= SEGMENT_KIB, "memfds are left"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--pages", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-heap", action="store_true", help="the daemon's allocator is a sanitizer's, which keeps what is freed")
    a = parser.parse_args()

    def test_churn_levels_off():
        churn(a.rounds, a.pages, a.seed, not a.no_heap)
    run(test_churn_levels_off)
