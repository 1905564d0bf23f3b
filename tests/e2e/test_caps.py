#!/usr/bin/env python3
"""max_page_sharing changed while pages are shared, and strips of equal neighbours, judged by page frames and maps."""
from collections import Counter

from harness import Daemon, Victim, frames, has, n_maps, run, same, until

PAGES = 512


def expected(n, cap):
    """Shared pages and further mappings of n equal pages: KSM's counts."""
    q, r = divmod(n, cap)
    shared = q if r < 2 else q + 1
    return shared, q * (cap - 1) if r < 2 else n - shared


def copies(victims):
    """Of each page of the victims' memory: is one in transition, how many frames hold it, and how many map the fullest."""
    for page in zip(*(frames(v, "m", PAGES) for v in victims)):
        sharers = Counter(page)
        yield 0 in sharers, len(sharers), max(sharers.values())


def test_cap_changed_live():
    """The kernel answers EBUSY; here frames and counts follow, runs stay whole, and nobody reads other bytes."""
    n = 6
    with Daemon("--max_page_sharing=256", "--stable_node_chains_prune_millisecs=100") as d:
        victims = same(d, n, PAGES)
        for cap in (256, 3, 2, 4, 6, 2, 5, 100):
            d.ctl("set", f"max_page_sharing={cap}")
            shared, sharing = expected(n, cap)
            has(d, f"cap {cap}", pages_sharing=sharing * PAGES)
            # Where one is left over it is private, or the only sharer of its copy: memory is the same.
            unshared = n - shared - sharing
            until(lambda: all(c[:2] == (False, shared + unshared) and c[2] <= cap for c in copies(victims)), 30,
                  f"cap {cap}: frames of a page, and who maps one: {Counter(copies(victims))}")
            has(d, "no run is in the way", dups_for_runs=0)
            for v in victims:
                v.do("check", "m")
        has(d, "one copy of all", pages_shared=PAGES, stable_node_chains=0)
        before, after = d.stats()["segment_bytes"], PAGES * 4096
        until(lambda: d.stats()["dead_bytes"] <= d.stats()["segment_bytes"] // 10 + 64 * 4096, 60,
              f"{before} bytes of segments come down towards {after}: {d.stats()}")
        for v in victims:
            v.do("check", "m")
            v.quit()


def test_strips():
    """Equal neighbours, five times as many as the process may have mappings: all are shared."""
    pages = 16384
    budget = int(open("/proc/sys/vm/max_map_count").read()) * 50 // 1000
    with Daemon("--run=0", "--vma_share_permille=50", "--segment_share_permille=1000") as d:
        v = Victim(d)
        v.do("map", "m", pages)
        v.do("repeat", "m", 0, pages, 77)
        until(v.connected, 10, "connected")
        without = n_maps(v.pid)
        d.ctl("set", "run=1")
        s = until(lambda: (s := d.stats())["pages_shared"] + s["pages_sharing"] >= pages and s, 60, "all are shared")
        sharers = Counter(frames(v, "m", pages))
        print(f"   {len(sharers)} copies in {n_maps(v.pid) - without} mappings of {budget}")
        assert 0 not in sharers and max(sharers.values()) <= 256, sharers
        assert len(sharers) <= pages // 32, sharers
        assert n_maps(v.pid) - without <= budget
        assert s["pages_shared"] == len(sharers), s
        v.do("check", "m")
        v.quit()


if __name__ == "__main__":
    run(test_cap_changed_live, test_strips)
