#!/usr/bin/env python3
"""ideal on two processes whose answer is known.

Each child offers one mapping with MADV_MERGEABLE, so that --ranges mergeable sees these pages and nothing of the
interpreter. Layout in pages, both children:

    0..9     zero, written
    10..73   64 contents common to both                       a run of 64 in each
    74       a content of its own                             unique
    75..77   one content three times                          runs of 1: equal neighbours share one slot
    78       never touched                                    no candidate
    79..86   the first child's contents 10..17 in reverse     runs of 1 in both

and two private file mappings: 4 common pages of a memfd called userksm (merged already), which count as a run of 4, and
the same 4 of another file, which do not count.

Contents that occur twice or more: 64 common ones, the repeated one, 4 merged ones."""
import json
import mmap
import os
import signal
import subprocess
import sys

PAGE = 4096
MADV_MERGEABLE, MADV_NOHUGEPAGE = 12, 15


def page(tag):
    return tag.to_bytes(8, "little") * (PAGE // 8)


def map_memfd(name):
    fd = os.memfd_create(name)
    os.write(fd, b"".join(page(2000 + i) for i in range(4)))
    m = mmap.mmap(fd, 4 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    m.madvise(MADV_MERGEABLE)
    for i in range(4):
        m[i * PAGE]  # a page that nobody touched is not present
    return m


def child(number, ready):
    m = mmap.mmap(-1, 87 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(MADV_NOHUGEPAGE)
    try:
        m.madvise(MADV_MERGEABLE)
    except OSError:
        os.write(ready, b"x")
        os._exit(0)

    def put(index, content):
        m[index * PAGE:(index + 1) * PAGE] = content
    for i in range(10):
        put(i, bytes(PAGE))
    for i in range(64):
        put(10 + i, page(1000 + i))
    put(74, page(5000 + number))
    for i in range(75, 78):
        put(i, page(7000))
    for i in range(8):
        put(79 + i, page(1007 - i))
    merged, other = map_memfd("userksm"), map_memfd("other")
    os.write(ready, b"r")
    while merged and other:
        signal.pause()


def main():
    ideal = sys.argv[1]
    pids = []
    try:
        for number in range(2):
            r, w = os.pipe()
            pid = os.fork()
            if pid == 0:
                child(number, w)
            pids.append(pid)
            if os.read(r, 1) != b"r":
                print("skip: the kernel has no KSM, so no range can be marked")
                return 77
        out = subprocess.run([ideal, "--json", "--ranges", "mergeable", *map(str, pids)],
                             capture_output=True, text=True, check=True).stdout
        total = json.loads(out)["total"]
        first = json.loads(out)["processes"][0]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    # 64 common contents, 8 of them twice in each child: 128 + 16 pages; the repeated one: 6 pages; merged: 8 pages.
    want = {"pages": 180, "zero_pages": 20, "duplicate_pages": 158, "unique_pages": 2,
            "saved_bytes": (20 + 158 - 69) * PAGE, "runs": 2 * (1 + 3 + 8 + 1)}
    wrong = [f"{name}: {total[name]}, expected {value}" for name, value in want.items() if total[name] != value]
    lengths = {b["pages_from"]: b["runs"] for b in total["run_lengths"] if b["runs"]}
    if lengths != {1: 22, 4: 2, 64: 2}:
        wrong.append(f"run lengths {lengths}")
    # zeros | 64 | unique | 1 1 1 | hole | 8 x 1 | ... and the run of 4, each with the piece assumed behind the last run
    if first["vmas_added"] != (1 + 1 + 3 + 1 + 8 + 1) + (1 + 1):
        wrong.append(f"vmas_added {first['vmas_added']}")
    if first["pages"] != 90 or first["unreadable_pages"]:
        wrong.append(f"first child: {first}")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


sys.exit(main())
