#!/usr/bin/env python3
"""Unmerging: a part, with too little memory, and much of it while others are served; by frames, PSS and the loop's own latency."""
import subprocess
import time

from harness import BUILD, Daemon, Groups, frames, has, rollup, run, same

PAGES = 512
P99_USEC = 10000


def test_a_range():
    with Daemon() as d:
        victims = same(d, 3, PAGES)
        has(d, "merged", pages_sharing=2 * PAGES)
        v, start = victims[0], int(victims[0].say("address", "m").split()[1])
        before = [frames(v, "m", PAGES) for v in victims]
        d.ctl("unmerge", f"--range={start + 100 * 4096:x}-{start + 300 * 4096:x}", str(v.pid))
        after = frames(v, "m", PAGES)
        assert not set(after[100:300]) & set(before[1]) and len(set(after[100:300])) == 200, "private copies"
        assert after[:100] + after[300:] == before[0][:100] + before[0][300:], "the rest is where it was"
        assert [frames(w, "m", PAGES) for w in victims[1:]] == before[1:]
        has(d, "what is left", pages_shared=PAGES, pages_sharing=2 * PAGES - 200)
        for w in victims:
            w.do("check", "m")
        r = d.ctl("unmerge", "--range=1000-2000", str(v.pid), check=False)
        assert r.returncode == 1 and "nothing is registered there" in r.stderr, r.stderr
        for w in victims:
            w.quit()


def refused(d, where, *what):
    r = d.ctl(*what, check=False)
    assert r.returncode == 1 and "refused" in r.stderr and where in r.stderr and "--force" in r.stderr, r


def test_too_little_memory():
    """The private copies would not fit under the limit of the process's group, in which the kernel would kill it half-way."""
    groups = Groups()
    if not groups.directory:
        print("   no memory control group can be made here: not tried")
        return
    pages, limit = 16384, 40 << 20
    groups.make(4 * pages * 4096)
    try:
        with Daemon("--segment_share_permille=1000") as d:
            victims = same(d, 2, pages)
            v = victims[0]
            (groups.inner / "cgroup.procs").write_text(str(v.pid))
            v.do("map", "own", 64)
            has(d, "merged", pages_shared=pages, pages_sharing=pages)
            groups.set_limit(limit)
            for what in ("unmerge", str(v.pid)), ("unmerge", "all"), ("set", "run=2"):
                refused(d, f"control group of process {v.pid}", *what)
            s = d.stats()
            assert s["pages_sharing"] == pages and d.ctl("get", "run").stdout == "1\n", s
            # A part that fits is restored.
            start = int(v.say("address", "m").split()[1])
            d.ctl("unmerge", f"--range={start:x}-{start + 1024 * 4096:x}", str(v.pid))
            has(d, "a part", pages_sharing=pages - 1024)
            refused(d, f"control group of process {v.pid}", "unmerge", f"--range={start + 1024 * 4096:x}-{start + 8192 * 4096:x}", str(v.pid))
            d.ctl("unmerge", "--force", f"--range={start + 1024 * 4096:x}-{start + 7024 * 4096:x}", str(v.pid))
            has(d, "another", pages_sharing=pages - 7024)
            groups.set_limit(4 * pages * 4096)
            d.ctl("unmerge", "all")
            has(d, "all is given back", pages_shared=0, pages_sharing=0, segments=0)
            assert rollup(v.pid, "Private_Dirty") > pages * 4
            for w in victims:
                w.do("check", "m")
                w.quit()
    finally:
        groups.remove()


def test_others_are_served():
    """Half a GiB is unmerged; what the loop does for it at a time holds up nobody."""
    pages = 65536
    with Daemon("--segment_share_permille=1000", "--pages_to_scan=1000000") as d:
        victims = same(d, 2, pages)
        others = same(d, 2, PAGES)
        has(d, "merged", pages_sharing=pages + 2 * PAGES)  # the others hold the same bytes
        before = d.stats()
        held = rollup(victims[0].pid, "Pss") + rollup(victims[1].pid, "Pss")
        started = time.monotonic()
        ctl = subprocess.Popen([BUILD / "ctl/ksmctl", "--socket", d.socket, "unmerge", "all"], stdout=subprocess.PIPE, text=True)
        waits = []
        while ctl.poll() is None:
            t = time.monotonic()
            d.stats()
            waits.append(time.monotonic() - t)
        assert ctl.returncode == 0, ctl.stdout.read()
        seconds = time.monotonic() - started
        s = d.stats()
        names = [k for k in s if k.startswith("turn_cpu_le_")] + ["turn_cpu_gt_250000_usec"]
        grown = [s[k] - before[k] for k in names]
        fast = sum(n for k, n in zip(names, grown) if "_le_" in k and int(k.split("_")[3]) <= P99_USEC)
        print(f"   {ctl.stdout.read().strip()} in {seconds:.1f} s, {sum(grown)} turns, {1000 * fast / sum(grown):.1f} permille of at most "
              f"4.1 ms CPU, stats by ksmctl {1000 * sorted(waits)[len(waits) // 2]:.0f} ms in the median")
        assert fast >= sum(grown) * 0.99, dict(zip(names, grown))
        has(d, "the store is empty", pages_shared=0, pages_sharing=0, segments=0, segment_bytes=0)
        after = rollup(victims[0].pid, "Pss") + rollup(victims[1].pid, "Pss")
        assert after - held > pages * 4 * 0.9, f"{held} KiB held, {after} KiB after"
        for v in victims + others:
            v.do("check", "m")
            v.quit()


if __name__ == "__main__":
    run(test_a_range, test_too_little_memory, test_others_are_served)
