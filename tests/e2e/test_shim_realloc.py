#!/usr/bin/env python3
"""realloc of merged blocks: exact, and restored only where libc would remap them."""
import glob
import os

from harness import BUILD, FAST, Daemon, run, until
from test_shim_support import SHIM, finish, merged_pages, spawn

PROGRAM = BUILD / "tests/e2e/test_shim_realloc"
BLOCKS = 16
JEMALLOC = glob.glob("/usr/lib/*-linux-gnu/libjemalloc.so.2")


def whole_pages(size):
    """Of all blocks, wherever they begin."""
    return BLOCKS * max(1, size // 4096 - 2)


def reallocated(old, new, preload=""):
    """(pages merged before, after) of two programs with the same blocks."""
    with Daemon(*FAST) as d:
        both = [spawn([PROGRAM, old, new], d.socket, USERKSM_MERGE_ANY="1", LD_PRELOAD=f"{SHIM} {preload}") for _ in range(2)]
        for program in both:
            assert program.stdout.readline() == "ready\n"
        enough = whole_pages(old) - whole_pages(min(old, new)) // 10  # so that what is kept holds nine tenths, wherever the rest lies
        until(lambda: all(merged_pages(p.pid) >= enough for p in both), what="the blocks are merged")
        counts = []
        for program in both:
            before, after, what = finish_with_line(program)
            assert what == "equal", f"{old} to {new} bytes: {what}"
            counts.append((int(before), int(after)))
        return counts


def finish_with_line(program):
    program.stdin.write("\n")
    program.stdin.flush()
    return finish(program, 60, "realloc").split()


def stay(old, new, preload=""):
    for before, after in reallocated(old, new, preload):
        assert before >= whole_pages(min(old, new)) * 9 // 10, f"{old} to {new} bytes: {before} merged before"
        assert after >= before * 9 // 10, f"{old} to {new} bytes: {before} pages merged before, {after} after"


def test_shrunk_in_the_heap():
    stay(64 << 10, 40 << 10)


def test_shrunk_in_a_mapping():
    stay(1 << 20, 600 << 10)


def test_grown_in_a_mapping():
    """libc remaps it: what comes new must not be what lies behind a merged run in its segment."""
    for before, _ in reallocated(1 << 20, 3 << 20):
        assert before >= whole_pages(1 << 20) * 9 // 10, f"{before} pages merged before"


def test_another_allocator():
    if not JEMALLOC:
        print("SKIP: libjemalloc2 is not installed")
        return
    stay(8192, 8000, JEMALLOC[0])
    stay(8000, 8192, JEMALLOC[0])


if __name__ == "__main__":
    os.environ["MALLOC_PERTURB_"] = "0"  # meson sets it: what realloc adds would not be the kernel's zeros
    run(test_shrunk_in_the_heap, test_shrunk_in_a_mapping, test_grown_in_a_mapping, test_another_allocator)
