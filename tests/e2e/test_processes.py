#!/usr/bin/env python3
"""What ksmctl says of each process, each of its ranges and each domain, held against pagemap, smaps and PSS; and that the sums agree:
ranges = process, processes = domain, domains = totals."""
import json
import os
import struct
import subprocess
import sys

from harness import Daemon, Victim, run, skip, until
from test_shim_support import SHIM

USERS = (0, 65534, 65533)
COMMON, ZERO, OWN = 512, 128, 64
FILE, PRESENT = 1 << 61, 1 << 63
PAGE = 4096


def prepare(daemon, user, seed):
    """Two ranges: one shared by all of the domain with zeros behind it, one with half of it shared."""
    v = Victim(daemon, user=user, group=user)
    v.do("map", "a", COMMON + ZERO)
    v.do("fill", "a", 0, COMMON, 1000)
    v.do("fill", "a", COMMON, ZERO, 0)
    v.do("map", "gap", 1)
    v.do("unregister", "gap")
    v.do("map", "b", 2 * OWN)
    v.do("fill", "b", 0, OWN, 90000)
    v.do("fill", "b", OWN, OWN, 1000000 * seed)
    return v


def entries(victim, name, n):
    address = int(victim.do("address", name).split()[1])
    with open(f"/proc/{victim.pid}/pagemap", "rb") as f:
        f.seek(address // PAGE * 8)
        return address, struct.unpack(f"<{n}Q", f.read(n * 8))


def shared_kib(pid, key):
    """Of all mappings of segments, by smaps."""
    total, inside = 0, False
    for line in open(f"/proc/{pid}/smaps"):
        if "-" in line.split()[0]:
            inside = "memfd:" in line
        elif inside and line.startswith(key + ":"):
            total += int(line.split()[1])
    return total


def status(daemon):
    return json.loads(daemon.ctl("status", "--ranges", "--domains", "--json").stdout)


def check_process(process, victim, n_sharers):
    ranges = {r["start"]: r for r in process["range_list"]}
    for name, n in (("a", COMMON + ZERO), ("b", 2 * OWN)):
        address, pages = entries(victim, name, n)
        # A range may be one with what is registered next to it: it holds at least this.
        r = next(r for start, r in ranges.items() if start <= address < start + r["bytes"])
        merged = sum(1 for e in pages if e & PRESENT and e & FILE)
        alone = r["start"] == address and r["bytes"] == n * PAGE
        assert r["mergeable"] and (r["merged_bytes"] == merged * PAGE or not alone), (name, r, merged)
    for ours, of_ranges in (("tracked_bytes",) * 2, ("merged_bytes",) * 2, ("zero_bytes",) * 2, ("unshared_bytes",) * 2, ("registered_bytes", "bytes")):
        assert process[ours] == sum(r[of_ranges] for r in ranges.values()), (ours, process)
    merging = process["ksm_merging_pages"]
    assert merging * PAGE == process["merged_bytes"] and process["ksm_rmap_items"] * PAGE == process["tracked_bytes"], process
    assert merging * 4 == shared_kib(victim.pid, "Rss"), (merging, shared_kib(victim.pid, "Rss"))
    # The daemon has the segment mapped that it is filling: a sharer more of some pages.
    pss, most, least = shared_kib(victim.pid, "Pss"), merging * 4 / n_sharers, merging * 4 / (n_sharers + 1)
    assert least - 16 <= pss <= most + 16, f"{merging} pages of {n_sharers} sharers, PSS {pss} KiB"
    saved = (merging + process["ksm_zero_pages"]) * PAGE
    assert 0 < saved - process["ksm_process_profit"] < saved // 10, process
    paths = [line.rstrip("\n").split(":", 2)[2] for line in open(f"/proc/{victim.pid}/cgroup") if line.startswith("0::") or ":name=systemd:" in line]
    assert process["cgroup"] in [path[:255] for path in paths], (process["cgroup"], paths)


def check_sums(said):
    names = ["registered_bytes", "tracked_bytes", "merged_bytes", "zero_bytes", "unshared_bytes"]
    for d in said["domains"]:
        of_domain = [p for p in said["processes"] if p["domain"] == d["domain"]]
        assert len(of_domain) == d["processes"], d
        for name in names:
            assert sum(p[name] for p in of_domain) == d[name], (name, d)
    counters, total = said["counters"], lambda name: sum(d[name] for d in said["domains"]) // PAGE
    assert total("registered_bytes") == counters["registered_pages"] and total("tracked_bytes") == counters["tracked_pages"], said
    assert total("shared_bytes") == counters["pages_shared"] and total("zero_bytes") == counters["ksm_zero_pages"], said
    assert total("merged_bytes") == counters["pages_shared"] + counters["pages_sharing"], said
    assert total("unshared_bytes") == counters["pages_unshared"] and total("volatile_bytes") == counters["pages_volatile"], said
    assert total("store_bytes") * PAGE == counters["segment_bytes"] and total("dead_bytes") * PAGE == counters["dead_bytes"], said


def check_lines(daemon, victim, process):
    text = daemon.ctl("status", str(victim.pid), "--ranges").stdout
    lines = dict(line.replace(":", "").split(maxsplit=1) for line in text.split("\n\n")[0].splitlines())
    for name in ("ksm_rmap_items", "ksm_zero_pages", "ksm_merging_pages", "ksm_process_profit"):
        assert int(lines[name]) == process[name], (name, lines)
    assert lines["ksm_merge_any"] == "no" and lines["ksm_mergeable"] == "yes" and int(lines["pid"]) == victim.pid, lines
    assert len(text.split("\n\n")[1].splitlines()) == 1 + len(process["range_list"]), text


def test_processes_ranges_and_domains():
    if os.getuid() != 0:
        skip("needs root: processes of several users")
    with Daemon("--open_to_all=yes") as d:
        os.chmod(d.directory, 0o755)
        victims = [prepare(d, u, 3 * i + k + 1) for i, u in enumerate(USERS) for k in range(i + 2)]
        sharing = sum(i + 1 for i in range(len(USERS))) * (COMMON + OWN)
        want = {"pages_sharing": sharing, "pages_unshared": OWN * len(victims), "ksm_zero_pages": ZERO * len(victims), "pages_volatile": 0}
        until(lambda: want.items() <= d.stats().items(), 30, f"{want}: {d.stats()}")
        said = status(d)
        assert len(said["domains"]) == len(USERS), said["domains"]
        check_sums(said)
        by_pid = {p["pid"]: p for p in said["processes"]}
        for v in victims:
            process = by_pid[v.pid]
            check_process(process, v, sum(1 for p in said["processes"] if p["domain"] == process["domain"]))
            check_lines(d, v, process)
        pss = sum(shared_kib(pid, "Pss") for pid in (d.process.pid, *by_pid))
        shared = sum(x["shared_bytes"] for x in said["domains"]) // 1024
        assert abs(pss - shared) <= 16 * (len(victims) + 1), f"PSS of all segments {pss} KiB, shared pages {shared} KiB"
        # One is taken out of merging: it says so, and the sums go with it.
        v = victims[0]
        d.ctl("unmerge", str(v.pid))
        until(lambda: d.stats()["pages_sharing"] == sharing - COMMON - OWN, 30, "unmerged")
        process = json.loads(d.ctl("status", str(v.pid), "--ranges", "--json").stdout)["processes"][0]
        assert process["ksm_merging_pages"] == 0 and not any(r["mergeable"] for r in process["range_list"]), process
        until(lambda: d.stats()["pages_volatile"] == 0, 30, "at rest")
        check_sums(status(d))
        for v in victims:
            v.quit()
        until(lambda: status(d)["domains"] == [], 30, "domains go with their last process")
        assert d.ctl("status", str(victims[0].pid), check=False).returncode == 67


def test_who_may_see_what():
    """A user is told of the domain of his own processes and of their ranges, and of nobody else's."""
    if os.getuid() != 0:
        skip("needs root: processes of several users")
    with Daemon("--open_to_all=yes") as d:
        os.chmod(d.directory, 0o755)
        victims = {u: prepare(d, u, 1) for u in USERS}
        until(lambda: d.stats()["registered_pages"] == len(USERS) * (COMMON + ZERO + 2 * OWN), 30, "all are registered")

        def as_user(user, *arguments):
            pid = os.fork()
            if pid == 0:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                result = d.ctl(*arguments, check=False)
                print(result.stderr, end="", flush=True)
                said = json.loads(result.stdout) if result.stdout else {}
                right = [x["processes"] for x in said.get("domains", [])] == [1] and \
                    [(p["uid"], len(p["range_list"]) > 0) for p in said.get("processes", [])] == [(user, True)]
                os._exit(0 if right else 1)
            return os.waitpid(pid, 0)[1]

        for user in USERS[1:]:
            assert as_user(user, "status", "--ranges", "--domains", "--json") == 0, user
        assert len(status(d)["domains"]) == len(USERS)
        for v in victims.values():
            v.quit()


ADVISES = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for line in sys.stdin:
    if line == "mergeable\\n":
        assert not libc.madvise(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory))), ctypes.c_size_t(1 << 20), 12)
    else:
        assert not libc.prctl(67, ctypes.c_ulong(int(line)), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    print("done", flush=True)
"""


def test_merge_any_is_what_it_is_now():
    """PR_SET_MEMORY_MERGE by a program that is connected already: its status follows."""
    with Daemon() as d:
        environment = {"PATH": os.environ["PATH"], "LD_PRELOAD": str(SHIM), "USERKSM_SOCKET": d.socket, "USERKSM_RULES_DIR": ""}
        p = subprocess.Popen([sys.executable, "-c", ADVISES], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def do(what, merge_any):
            p.stdin.write(what + "\n")
            p.stdin.flush()
            assert p.stdout.readline() == "done\n"
            lines = f"ksm_merge_any: {merge_any}\nksm_mergeable: yes\n"
            until(lambda: lines in d.ctl("status", str(p.pid), check=False).stdout, 30, f"{what}: {lines}")

        do("mergeable", "no")
        do("1", "yes")
        do("0", "no")
        p.communicate()
        assert p.returncode == 0, p.returncode


if __name__ == "__main__":
    run(test_processes_ranges_and_domains, test_who_may_see_what, test_merge_any_is_what_it_is_now)
