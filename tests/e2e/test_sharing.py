#!/usr/bin/env python3
"""Who shares what, as the kernel tells it (page frames, maps, PSS, segments), held against the counters: the cap of
max_page_sharing, merge domains, VMA budget, unmerge, churn, a restart of the daemon."""
import os
import signal
import subprocess
from collections import Counter
from errno import ENOENT

from harness import BUILD, Daemon, Victim, frames, has, n_maps, rollup, run, same, skip, until

PAGES = 512
NOBODY, OTHER = 65534, 65533


def store_pss(daemon, victims):
    """KiB of shared pages in use, each divided among all who map it, the daemon included: so each counts once."""
    kib, is_in = 0, False
    for pid in [daemon.process.pid] + [v.pid for v in victims]:
        for line in open(f"/proc/{pid}/smaps"):
            word = line.split()[0]
            if "-" in word:
                is_in = "/memfd:userksm" in line
            elif is_in and word == "Pss:":
                kib += int(line.split()[1])
    return kib


def store_kib(daemon, victims):
    """Memory of the segments that anybody still holds by a descriptor or maps: each once."""
    blocks = {}
    for pid in [daemon.process.pid] + [v.pid for v in victims]:
        for task in os.listdir(f"/proc/{pid}/task"):  # the agent has a descriptor table of its own
            directory = f"/proc/{pid}/task/{task}/fd"
            for fd in os.listdir(directory):
                try:
                    if os.readlink(f"{directory}/{fd}").startswith("/memfd:userksm"):
                        s = os.stat(f"{directory}/{fd}")
                        blocks[s.st_ino] = s.st_blocks // 2
                except FileNotFoundError:
                    pass
        for line in open(f"/proc/{pid}/maps"):
            if "/memfd:userksm" in line:
                blocks.setdefault(int(line.split()[4]), 1)
    return sum(blocks.values())


def renew(victim, name, n, seed):
    """Other memory, for what was merged and then written stays private."""
    victim.do("unmap", name)
    victim.do("map", name, n)
    victim.do("fill", name, 0, n, seed)


def end(daemon, victims):
    for v in victims:
        assert v.say("check", "m") in ("ok", f"error {ENOENT}")
        v.quit()
    has(daemon, "the store is empty", pages_shared=0, pages_sharing=0, segments=0, stable_node_chains=0,
        stable_node_dups=0, segment_bytes=0, dead_bytes=0, vmas_used=0, runs=0, registered_pages=0, tracked_pages=0)


def cap_case(n, cap, shared, sharing):
    with Daemon("--run=0", f"--max_page_sharing={cap}") as d:
        victims = same(d, n, PAGES)
        d.ctl("set", "run=1")
        unshared = n - shared - sharing
        s = has(d, f"{n} equal pages, cap {cap}", pages_shared=shared * PAGES, pages_sharing=sharing * PAGES,
                pages_unshared=unshared * PAGES)
        chains = PAGES if shared > 1 else 0
        assert s["stable_node_chains"] == chains and s["stable_node_dups"] == chains * shared, s
        all_frames = [frames(v, "m", PAGES) for v in victims]
        for page in range(PAGES):
            sharers = Counter(f[page] for f in all_frames)
            assert 0 not in sharers and max(sharers.values()) <= cap, f"page {page}: {sharers}"
            assert len(sharers) == shared + unshared, f"page {page}: {sharers}"
        pss, counted = store_pss(d, victims), shared * PAGES * 4
        assert abs(pss - counted) <= n * 32, f"{pss} KiB of shared pages, {counted} counted"
        while len(victims) > 1:
            victims.pop().quit()
        has(d, "one sharer left", pages_sharing=0, stable_node_chains=0, stable_node_dups=0, tracked_pages=PAGES)
        end(d, victims)


def test_cap_of_sharers():
    for n, cap, shared, sharing in ((6, 4, 2, 4), (5, 4, 1, 3), (4, 4, 1, 3), (5, 2, 2, 2)):
        cap_case(n, cap, shared, sharing)


def test_users_never_share():
    if os.getuid() != 0:
        skip("needs root: processes of several users")
    with Daemon("--open_to_all=yes") as d:
        os.chmod(d.directory, 0o755)
        by_user = {u: same(d, 2, PAGES, user=u, group=u) for u in (NOBODY, OTHER)}
        by_user[0] = same(d, 2, PAGES)
        s = has(d, "each user's two share", pages_shared=3 * PAGES, pages_sharing=3 * PAGES)
        assert s["domains"] == 3, s
        seen = {}
        for user, victims in by_user.items():
            a, b = (frames(v, "m", PAGES) for v in victims)
            assert a == b and 0 not in a, f"uid {user}: its two processes do not share"
            for frame in a:
                assert seen.setdefault(frame, user) == user, f"uid {user} and {seen[frame]} share frame {frame:#x}"
        end(d, [v for victims in by_user.values() for v in victims])
        has(d, "domains go with their last client", domains=0)


def test_run_2_gives_the_memory_back():
    pages = 16384
    with Daemon() as d:
        victims = same(d, 3, pages)
        has(d, "merged", pages_shared=pages, pages_sharing=2 * pages)
        assert store_kib(d, victims) >= pages * 4
        d.ctl("set", "run=2")
        has(d, "unmerged", pages_shared=0, pages_sharing=0, segments=0, segment_bytes=0, vmas_used=0)
        until(lambda: store_kib(d, victims) == 0, 10, "the segments' memory is free again")
        for v in victims:
            v.do("check", "m")
            assert rollup(v.pid, "Private_Dirty") >= pages * 4
        d.ctl("set", "run=1")
        has(d, "merged again", pages_shared=pages, pages_sharing=2 * pages)
        end(d, victims)


def test_run_0_and_1_while_busy():
    with Daemon() as d:
        victims = same(d, 3, 4096)
        for i in range(30):
            victims[i % 3].do("poke", "m", 64 * i, 64)
            d.ctl("set", f"run={i % 2}")
        for v in victims:
            renew(v, "m", 4096, 1000)
        # All: a transition that was on its way to the old mapping and was made in the new one counts, too.
        def merged():
            s = d.stats()
            return s["pages_sharing"] + s["pages_shared"] == 3 * 4096
        until(merged, 90, "merged")
        assert d.stats()["pages_shared"] <= 4096 * 105 // 100, d.stats()
        end(d, victims)


def test_one_process_on_request():
    with Daemon() as d:
        victims = same(d, 3, PAGES)
        has(d, "merged", pages_sharing=2 * PAGES)
        out = d.ctl("unmerge", str(victims[0].pid)).stdout
        assert out.startswith(f"restored {PAGES} pages"), out
        has(d, "one less", pages_shared=PAGES, pages_sharing=PAGES)
        assert not set(frames(victims[0], "m", PAGES)) & set(frames(victims[1], "m", PAGES))
        # Unmerged by request: out of merging until it registers anew.
        d.ctl("merge", str(victims[0].pid))
        assert d.stats()["pages_sharing"] == PAGES
        victims[0].do("check", "m")
        end(d, victims)
    with Daemon("--pass_millisecs=60000", "--settle_millisecs=60000") as d:
        victims = same(d, 3, PAGES)
        for v in victims:
            d.ctl("merge", str(v.pid))
        d.ctl("merge", "all")
        s = d.stats()
        assert s["pages_sharing"] == 2 * PAGES, s
        end(d, victims)


def test_vma_budget_holds():
    """Every other page is common: each merged one costs two VMAs."""
    pages = 4096
    most = int(open("/proc/sys/vm/max_map_count").read()) * 20 // 1000
    with Daemon("--run=0", "--vma_share_permille=20") as d:
        victims = []
        for i in range(2):
            v = Victim(d)
            v.do("map", "m", pages)
            v.do("fill", "m", 0, pages, 1000000 * (i + 1))
            for page in range(0, pages, 2):
                v.do("fill", "m", page, 1, 1000 + page)
            until(v.connected, 10, "connected")
            victims.append(v)
        d.ctl("set", "run=1")
        passes, peak = d.stats()["full_scans"], 0
        while d.stats()["full_scans"] < passes + 100:
            peak = max(peak, *(n_maps(v.pid) for v in victims))
        s = d.stats()
        assert peak <= most, f"{peak} mappings, {most} allowed"
        assert s["pages_sharing"] > most // 4, f"the budget is not used: {s['pages_sharing']} pages, {peak} mappings"
        assert s["failed_budget"] > 0, s
        end(d, victims)


def test_churn_leaks_nothing():
    areas, pages, rounds = 10, 400, 20
    with Daemon() as d:
        victims = [Victim(d) for _ in range(3)]
        for v in victims:
            for k in range(areas):
                v.do("map", f"m{k}", pages)
                v.do("fill", f"m{k}", 0, pages, 10000 * (k + 1))
        def merged():
            """All pages; while a segment is cleaned some contents have two copies."""
            s, n = d.stats(), areas * pages
            return s if s["pages_sharing"] + s["pages_shared"] == 3 * n and s["pages_shared"] <= n * 11 // 10 else None
        until(merged, 90, "merged")
        seen = []
        for i in range(rounds):
            for k in range(3):
                name = f"m{(3 * i + k) % areas}"
                for v in victims:
                    v.do("poke", name, 0, pages)
                    v.do("discard", name, pages // 2, pages // 4)
                    v.do("check", name)
                    renew(v, name, pages, 1000000 * (i + 1) + 10000 * k)
            s = until(merged, 90, f"merged, round {i}")
            seen.append((max(n_maps(v.pid) for v in victims), s["segment_bytes"] // 4096, s["metadata_bytes"],
                         rollup(d.process.pid, "Rss")))
        print("   maps, slots, metadata, Rss KiB of the daemon:", seen[1], seen[rounds // 2], seen[-1])
        for what, k, factor, slack in (("mappings", 0, 2, 64), ("slots", 1, 2, 2048), ("metadata", 2, 2, 1 << 20),
                                       ("daemon KiB", 3, 1.5, 4096)):
            assert seen[-1][k] <= factor * max(x[k] for x in seen[:5]) + slack, f"{what} grow: {[x[k] for x in seen]}"
        for v in victims:
            for k in range(areas):
                v.do("check", f"m{k}")
        end(d, victims)


def test_restart_keeps_savings():
    with Daemon() as d:
        victims = same(d, 3, PAGES)
        has(d, "merged", pages_shared=PAGES, pages_sharing=2 * PAGES)
        before = [frames(v, "m", PAGES) for v in victims]
        d.stop(signal.SIGKILL)
        d.start()
        for v in victims:
            until(v.connected, 30, "connected again")
            v.do("check", "m")
        until(lambda: d.stats()["full_scans"] >= 40, 30, "40 passes")
        assert [frames(v, "m", PAGES) for v in victims] == before, "a page moved"
        assert abs(store_pss(d, victims) - PAGES * 4) <= 64, store_pss(d, victims)
        for v in victims:
            v.do("map", "n", PAGES)
            v.do("fill", "n", 0, PAGES, 5000)
        has(d, "new ones are merged", pages_shared=PAGES, pages_sharing=2 * PAGES)
        # What the old one had merged is renewed and merges again.
        for v in victims:
            renew(v, "m", PAGES, 9000)
        has(d, "renewed ones are merged", pages_shared=2 * PAGES, pages_sharing=4 * PAGES)
        for v in victims:
            v.do("check", "m")
            v.do("check", "n")
            v.quit()
        has(d, "the store is empty", pages_shared=0, segments=0)


def test_short_lives_are_no_news():
    """A process that ends in the middle of its hello is not worth a line."""
    with Daemon() as d:
        for i in range(100):
            victim = subprocess.Popen([BUILD / "tests/e2e/victim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      env={**os.environ, "USERKSM_SOCKET": d.socket})
            if i % 4:
                victim.stdout.readline()
            for _ in range(i * 200):
                pass  # dies at another point of its start each time
            victim.kill()
            victim.wait(20)
        has(d, "all have left", clients=0)
        lines = [line for line in d.said().splitlines() if "pid" in line]
        assert not lines, lines


if __name__ == "__main__":
    run(test_cap_of_sharers, test_users_never_share, test_run_2_gives_the_memory_back, test_run_0_and_1_while_busy,
        test_one_process_on_request, test_vma_budget_holds, test_churn_leaks_nothing, test_restart_keeps_savings,
        test_short_lives_are_no_news)
