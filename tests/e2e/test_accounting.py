#!/usr/bin/env python3
"""Savings as a person measures them from outside (sum of PSS), held against the counters; and what ends a merge."""
import time
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, EPERM

from harness import Daemon, Victim, rollup, run, until

PAGES = 4096  # 16 MiB a victim
COMMON = 2048
ZERO = 512


def prepare(daemon, n):
    victims = [Victim(daemon) for _ in range(n)]
    for i, v in enumerate(victims):
        v.do("map", "m", PAGES)
        v.do("fill", "m", 0, COMMON, 1000)
        v.do("fill", "m", COMMON, ZERO, 0)
        v.do("fill", "m", COMMON + ZERO, PAGES - COMMON - ZERO, 1000000 * (i + 1))
        until(v.connected, 10, "connected")
    return victims


def converged(daemon, sharing, zero):
    def look():
        s = daemon.stats()
        return s if s["pages_sharing"] >= sharing and s["ksm_zero_pages"] >= zero else None
    return until(look, 30, f"{sharing} sharing and {zero} zero pages; now {daemon.stats()}")


def test_counters_match_pss():
    with Daemon("--run=0") as d:
        victims = prepare(d, 4)
        before = sum(v.pss() for v in victims)
        d.ctl("set", "run=1")
        s = converged(d, 3 * COMMON, 4 * ZERO)
        assert s["pages_shared"] == COMMON and s["pages_sharing"] == 3 * COMMON, s
        assert s["ksm_zero_pages"] == 4 * ZERO, s
        fall = before - sum(v.pss() for v in victims)
        counted = (s["pages_sharing"] + s["ksm_zero_pages"]) * 4
        assert abs(fall - counted) <= counted // 20 + 512, f"PSS fell by {fall} KiB, counters say {counted} KiB"
        for v in victims:
            v.do("check", "m")
            v.quit()
        until(lambda: d.stats()["pages_shared"] == 0 and d.stats()["segments"] == 0, 10, "the store is empty")


def test_write_unshares_and_unregister_restores():
    with Daemon() as d:
        victims = prepare(d, 2)
        converged(d, COMMON, 2 * ZERO)
        victims[0].do("poke", "m", 0, 100)
        until(lambda: d.stats()["pages_sharing"] == COMMON - 100, 10, "100 pages were copied on write")
        for v in victims:
            v.do("check", "m")
        victims[1].do("unregister", "m")
        until(lambda: d.stats()["pages_sharing"] == 0, 10, "nothing is shared")
        shared = rollup(victims[1].pid, "Private_Dirty")
        assert shared >= (PAGES - ZERO) * 4, f"private again: {shared} KiB"
        for v in victims:
            v.do("check", "m")
            v.quit()


def test_discard_reads_zeros_and_fork_is_exact():
    with Daemon() as d:
        victims = prepare(d, 2)
        converged(d, COMMON, 2 * ZERO)
        a, b = victims
        a.do("fork")
        a.do("discard", "m", 10, 50)
        a.do("check", "m")
        a.do("fork")
        b.do("discard", "m", 0, 64)
        b.do("fork")
        b.do("check", "m")
        a.do("unmap", "m")
        b.do("check", "m")
        # Untouched discarded pages can be read by who cannot wait: a debugger.
        address = int(b.do("address", "m").split()[1])
        b.do("discard", "m", 100, 8)
        def zeros():
            try:
                with open(f"/proc/{b.pid}/mem", "rb") as f:
                    f.seek(address + 100 * 4096)
                    return f.read(8 * 4096) == bytes(8 * 4096)
            except OSError:
                return False
        until(zeros, 5, "discarded pages are readable from outside")
        b.do("check", "m")
        for v in victims:
            v.quit()


def test_merge_on_demand():
    with Daemon("--pass_millisecs=60000", "--settle_millisecs=60000") as d:
        victims = prepare(d, 3)
        saved = [int(v.do("merge", "m").split()[1]) for v in victims]
        saved += [int(v.do("merge", "m").split()[1]) for v in victims]
        assert sum(saved) >= (2 * COMMON + 3 * ZERO) * 4096 * 95 // 100, saved
        for v in victims:
            v.do("check", "m")
            v.quit()


def test_bad_ranges_change_nothing():
    with Daemon() as d:
        v = Victim(d)
        until(v.connected, 10, "connected")
        v.do("map", "m", 64)
        answers = dict(pair.split("=") for pair in v.say("bad").split())
        want = dict(unaligned=EINVAL, ragged=EINVAL, empty=EINVAL, wraps=EINVAL, gap=ENOMEM, unmapped=ENOMEM,
                    shared=EINVAL, file=EINVAL, readonly=EINVAL, none=EINVAL, again=EEXIST, inside=EEXIST,
                    overlap=EINVAL, gone=ENOENT, locked=EPERM, foreign=EBUSY)
        for what, number in want.items():
            assert int(answers[what]) == number, f"{what}: errno {answers[what]}, documented {number}"
        registered = v.say("stats").split()[0]
        assert registered == str(64 * 4096), registered
        v.do("check", "m")
        v.quit()


def test_registered_while_the_agent_opens():
    """What is asked of the agent while WELCOME is being dealt with is answered right after, not a second later."""
    delay = 0.3
    with Daemon() as d:
        took = []
        while not any(0.05 < t < 0.9 for t in took):
            assert len(took) < 20, f"none was answered in time: {took}"
            v = Victim(d, USERKSM_FAULT=f"link_welcome:delay:1:{int(delay * 1e6)}")
            v.do("map", "a", 1)  # the agent starts and connects
            until(lambda: d.stats()["clients"] == 1, 10, "WELCOME is sent")
            began = time.monotonic()
            v.do("map", "b", 1)
            took.append(time.monotonic() - began)  # next to nothing: it came too late
            v.quit()
            until(lambda: d.stats()["clients"] == 0, 10, "gone")


if __name__ == "__main__":
    run(test_counters_match_pss, test_write_unshares_and_unregister_restores,
        test_discard_reads_zeros_and_fork_is_exact, test_merge_on_demand, test_bad_ranges_change_nothing,
        test_registered_while_the_agent_opens)
