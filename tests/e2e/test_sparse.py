#!/usr/bin/env python3
"""Registered address space with next to nothing in it: what a pass costs, what the daemon keeps, what taking it out costs.

CPU time is the kernel's account of all threads (schedstat), memory is what the kernel says that the daemon alone has written
(Private_Dirty, whole pages). CPU time does not depend on who else wants the processor, so the bounds hold on a busy machine."""
import os
import sys
import time

from harness import Daemon, Victim, rollup, run, until

TIB, GIB = 1 << 40, 1 << 30
NEIGHBOUR_PAGES = 65
MEASURE_SECONDS = 1  # near a hundred passes of 10 ms, six of them with a plain look at everything
TRIES = 3


def cpu_usec(*pids):
    return sum(int(open(f"/proc/{p}/task/{t}/schedstat").read().split()[0]) for p in pids for t in os.listdir(f"/proc/{p}/task")) / 1000


def daemon_kib(d):
    return rollup(d.process.pid, "Private_Dirty")


def settled(d, unshared):
    until(lambda: d.stats()["pages_unshared"] == unshared and d.stats()["pages_volatile"] == 0, 120, f"{unshared} pages known: {d.stats()}")
    scans = d.stats()["full_scans"]
    until(lambda: d.stats()["full_scans"] > scans + 16, 120, "a pass with a look at everything")


def per_pass_usec(d):
    """CPU time of all of the daemon. Asking it costs as well, so it is asked at both ends only; the passes are counted."""
    scans, cpu = d.stats()["full_scans"], cpu_usec(d.process.pid)
    time.sleep(MEASURE_SECONDS)
    until(lambda: d.stats()["full_scans"] > scans, 30, "a pass")
    return (cpu_usec(d.process.pid) - cpu) / (d.stats()["full_scans"] - scans)


def measured(d, victim, count, size):
    """Growth in KiB as the kernel sees it and in the daemon's books, and the cost of a pass, with so many more mappings."""
    before, books = daemon_kib(d), d.stats()["metadata_bytes"]
    victim.do("sparse", count, size, 1000)
    settled(d, NEIGHBOUR_PAGES + count)
    grown, books = daemon_kib(d) - before, (d.stats()["metadata_bytes"] - books) / 1024
    usec = per_pass_usec(d)
    print(f"  {count} x {size / TIB:.3g} TiB with a page each: the daemon grew by {grown} KiB (books: {books:.1f}), a pass takes {usec:.0f} us",
          flush=True)
    return grown, books, usec


def with_neighbour(d):
    """A process with a little other memory: the daemon has done everything once."""
    v = Victim(d)
    v.do("map", "m", NEIGHBOUR_PAGES - 1)
    v.do("fill", "m", 0, NEIGHBOUR_PAGES - 1, 5000000)
    v.do("sparse", 1, GIB, 6000000)
    settled(d, NEIGHBOUR_PAGES)
    print(f"  without them a pass takes {per_pass_usec(d):.0f} us", flush=True)
    return v


def test_32_tib():
    """Less than 4 KiB in the books; as whole pages seen from outside none, but now and then others of the daemon's come in between."""
    with Daemon() as d:
        v = with_neighbour(d)
        tries = []
        for _ in range(TRIES):
            tries.append(measured(d, v, 1, 32 * TIB))
            v.do("unsparse")
            v.do("sparse", 1, GIB, 6000000)
            settled(d, NEIGHBOUR_PAGES)
        assert min(grown for grown, _, _ in tries) < 4 and max(books for _, books, _ in tries) < 4, tries
        assert min(usec for _, _, usec in tries) < 1000, tries
        v.quit()


def test_1000_ranges():
    """As large as 1000 fit into the 128 TiB that a process can have, on either side of where its program lies."""
    with Daemon() as d:
        v = with_neighbour(d)
        grown, books, _ = measured(d, v, 1000, 120 * GIB)
        assert grown < 4096 and books < 4096, (grown, books)
        v.do("unsparse")
        until(lambda: d.stats()["registered_pages"] == NEIGHBOUR_PAGES - 1, 60, "nothing of it is left")
        v.quit()


def cost(what, pids, call):
    """Milliseconds of CPU time of the daemon and the process, the unmerge itself being all that happens."""
    cpu, begin = cpu_usec(*pids), time.monotonic()
    call()
    elapsed, cpu = (time.monotonic() - begin) * 1000, (cpu_usec(*pids) - cpu) / 1000
    print(f"  {what}: {elapsed:.1f} ms, {cpu:.1f} ms of CPU time of daemon and process", flush=True)
    return cpu


def test_unmerging_32_tib():
    """Ranges are walked, not pages: 2^33 of them at a nanosecond each would take 8 s."""
    with Daemon() as d:
        victims = [Victim(d) for _ in range(2)]
        for v in victims:
            v.do("sparse", 1, 32 * TIB, 1000)
        until(lambda: d.stats()["pages_sharing"] == 1, 30, "the page is shared")
        a, b = victims
        assert cost("ksmctl unmerge", (d.process.pid, a.pid), lambda: d.ctl("unmerge", str(a.pid))) < 200
        until(lambda: d.stats()["pages_sharing"] == 0, 60, "it is not")
        assert cost("unregister", (d.process.pid, b.pid), lambda: b.do("unsparse")) < 200
        a.do("unsparse")
        for v in victims:
            v.quit()


if __name__ == "__main__":
    # A sanitizer's allocator keeps what is freed, and pads the rest: nothing about memory can be said.
    run(*([] if "--no-memory" in sys.argv else [test_32_tib, test_1000_ranges]), test_unmerging_32_tib)
