#!/usr/bin/env python3
"""merge_across_nodes=0: who shares with whom on a machine with several NUMA nodes, by page frames and by the nodes that move_pages(2) tells;
and what becomes of it when pages are migrated. The numbers are those of the kernel's own KSM.

Needs two nodes and root: scripts/test-guest numa2 and numa3."""
import collections
import ctypes
import mmap
import os
import pathlib
import random
import signal
import struct
import subprocess
import threading
import time

from harness import Daemon, Victim, run, skip, until
from nodes import NODES, PAGE, SYS_MOVE_PAGES, frames_at, libc, migrate_pages, move_pages, on_node, slots_at, without_balancing

NOBODY, OTHER = 65534, 1000
PAGES = 64
# Emulation, on a machine that others use too.
SECONDS = 120
STORM_SECONDS = 4
MADV_MERGEABLE = 12
KSM = pathlib.Path("/sys/kernel/mm/ksm")


# -- processes, and what there should be -------------------------------------------------------------------------------------------

class Resident:
    """A victim on a node whose memory "m" is the same as the others'."""

    def __init__(self, daemon, node, seed=1000, pages=PAGES, **how):
        with on_node(node):
            self.victim = Victim(daemon, **how)
        self.pages = pages
        self.victim.do("map", "m", pages)
        self.victim.do("fill", "m", 0, pages, seed)
        self.address = int(self.victim.do("address", "m").split()[1])
        until(self.victim.connected, SECONDS, "connected")
        self.go(node)  # already there, as a rule

    def nodes(self):
        return move_pages(self.victim.pid, self.address, self.pages)

    def frames(self):
        return frames_at(self.victim.pid, self.address, self.pages)

    def slots(self):
        return slots_at(self.victim.pid, self.address, self.pages)

    def go(self, node):
        """With whoever shares. A page that something holds for a moment does not go at once."""
        until(lambda: all(n == node for n in move_pages(self.victim.pid, self.address, self.pages, node)) or
              all(n == node for n in self.nodes()), SECONDS, f"pages on node {node}")


def numbers_of(group, cap, over_in_slot=False):
    """shared, sharing, unshared, chains of so many equal pages on a node, as max_page_sharing allows. One that is over is unshared; or it
    is the last sharer of a page that had more, which takes as much memory and counts as the kernel counts it: shared, by nobody else."""
    full, rest = divmod(group, cap)
    shared = full + (rest > 1 or (rest == 1 and over_in_slot))
    unshared = int(rest == 1 and not over_in_slot)
    return shared, group - shared - unshared, unshared, int(shared > 1)


def expected(residents, across, cap):
    """What the counters should be, of where the pages are; or what is wrong with the frames."""
    total = [0, 0, 0, 0]
    nodes, frames, slots = [r.nodes() for r in residents], [r.frames() for r in residents], [r.slots() for r in residents]
    for page in range(residents[0].pages):
        groups, in_slots = collections.defaultdict(list), set()
        for r in range(len(residents)):
            if nodes[r][page] < 0 or not frames[r][page]:
                return f"page {page} of resident {r} is absent: {nodes[r][page]}"
            groups[0 if across else nodes[r][page]].append(frames[r][page])
            in_slots |= {frames[r][page]} if slots[r][page] else set()
        for node, group in groups.items():
            sharers = collections.Counter(group)
            n = numbers_of(len(group), cap, in_slots >= set(sharers))
            if len(sharers) != n[0] + n[2] or max(sharers.values()) > cap:
                return f"page {page} on node {node}: sharers of its frames {sorted(sharers.values())}, should be {n[0]} frames"
            total = [a + b for a, b in zip(total, n)]
    return tuple(total)


def settled(d, residents, what, across=False, cap=256):
    """Until frames and counters are as the nodes of the pages say. Returns the counters."""
    def look():
        want = expected(residents, across, cap)
        s = d.stats()
        got = s["pages_shared"], s["pages_sharing"], s["pages_unshared"], s["stable_node_chains"]
        look.last = f"{want}; shared, sharing, unshared, chains: {got}"
        return got == want and s
    try:
        s = until(look, SECONDS, what)
    except AssertionError as e:
        raise AssertionError(f"{e}: should be {look.last}; {d.stats()}") from None
    print(f"   {what}: shared {s['pages_shared']}, sharing {s['pages_sharing']}", flush=True)
    return s


def on_each_node(d, n, cap=256, **how):
    """n on each node, and each node's share among themselves."""
    by_node = {node: [Resident(d, node, **how) for _ in range(n)] for node in NODES}
    s = settled(d, everyone(by_node), f"{n} on each of {len(NODES)} nodes", cap=cap)
    for node, residents in by_node.items():
        for r in residents:
            assert r.nodes() == [node] * PAGES, (node, r.nodes())
    shared, sharing, _, _ = numbers_of(n, cap)
    assert (s["pages_shared"], s["pages_sharing"]) == (shared * len(NODES) * PAGES, sharing * len(NODES) * PAGES), s
    return by_node


def everyone(by_node):
    return [r for residents in by_node.values() for r in residents]


def end(d, residents):
    for r in residents:
        r.victim.do("check", "m")
        r.victim.quit()
    until(lambda: d.stats()["segments"] == 0 and d.stats()["tracked_pages"] == 0, SECONDS, "the store is empty")


class Checks:
    """Threads that look at the bytes all the time, each victim's its own; the victims are not to be talked to meanwhile."""

    def __init__(self, residents, poke=False):
        self.stop, self.n, self.poke, self.failed = threading.Event(), 0, poke, []
        self.threads = [threading.Thread(target=self.look, args=(r,), daemon=True) for r in residents]

    def look(self, resident):
        try:
            while not self.stop.is_set():
                resident.victim.do("check", "m")
                self.n += 1
                if self.poke and random.random() < 0.2:
                    resident.victim.do("poke", "m", random.randrange(resident.pages), 1)
        except Exception as e:  # pylint: disable=broad-except
            self.failed.append(repr(e))

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        for t in self.threads:
            t.join()
        if exc[0] is None:
            assert not self.failed, self.failed
            assert self.n > 0


# -- tests -------------------------------------------------------------------------------------------------------------------------

def test_sharing_is_per_node():
    with Daemon("--merge_across_nodes=0") as d:
        end(d, everyone(on_each_node(d, 3)))


def test_alone_on_its_node():
    """Equal pages on different nodes are not merged; once they are on one, they are."""
    with Daemon("--merge_across_nodes=0") as d:
        a, b = (Resident(d, node) for node in NODES[:2])
        s = settled(d, [a, b], "one on each of two nodes")
        assert s["pages_sharing"] == 0 and s["pages_unshared"] == 2 * PAGES, s
        with Checks([a, b]):
            a.go(NODES[1])
            s = settled(d, [a, b], "both on one node")
        assert s["pages_shared"] == PAGES and a.nodes() == [NODES[1]] * PAGES, s
        end(d, [a, b])


def test_migrated_to_where_an_equal_chain_is():
    """move_pages of merged pages, by root: they join the chain of the node where they are now."""
    with Daemon("--merge_across_nodes=0") as d:
        by_node = on_each_node(d, 3)
        residents = everyone(by_node)
        with Checks(residents):
            by_node[NODES[0]][0].go(NODES[1])
            assert NODES[1] in by_node[NODES[0]][2].nodes(), "who shared it did not go along"
            s = settled(d, residents, "one node's pages moved to another")
        assert s["pages_shared"] < len(NODES) * PAGES, s
        until(lambda: d.stats().get("slots_misplaced", 0) == 0, SECONDS, "nothing is misplaced")
        end(d, residents)


def test_migrated_to_where_nothing_is():
    """migrate_pages of one process: what it shares goes along, is filed under the new node, and found there by the next equal page."""
    with Daemon("--merge_across_nodes=0") as d:
        residents = [Resident(d, NODES[1]) for _ in range(3)]
        settled(d, residents, "three on one node")
        with Checks(residents):
            until(lambda: migrate_pages(residents[1].victim.pid, NODES[0]) or residents[0].nodes() == [NODES[0]] * PAGES, SECONDS, "all moved")
            settled(d, residents, "migrated")
        residents += [Resident(d, NODES[0]), Resident(d, NODES[1])]
        # A page that was given back on the way is where its process runs, so not each has company on both.
        s = settled(d, residents, "one more on each node")
        assert s["pages_sharing"] >= 2 * PAGES, s
        end(d, residents)


def test_there_and_back():
    """Each page to another node, and back before and after userksm has noticed."""
    with Daemon("--merge_across_nodes=0") as d:
        by_node = on_each_node(d, 2)
        residents = everyone(by_node)
        with Checks(residents):
            for k in range(4):
                for node, group in by_node.items():
                    group[k % 2].go(NODES[(NODES.index(node) + k + 1) % len(NODES)])
                if k % 2:
                    settled(d, residents, f"round {k}")
        settled(d, residents, "the end")
        end(d, residents)


def test_cap_of_two():
    with Daemon("--merge_across_nodes=0", "--max_page_sharing=2") as d:
        by_node = on_each_node(d, 4, cap=2)
        residents = everyone(by_node)
        with Checks(residents):
            for r in by_node[NODES[0]]:
                r.go(NODES[1])
            settled(d, residents, "all of one node moved to another", cap=2)
        end(d, residents)


def test_changed_live():
    with Daemon("--merge_across_nodes=1") as d:
        by_node = {node: [Resident(d, node) for _ in range(2)] for node in NODES}
        residents = everyone(by_node)
        s = settled(d, residents, "merge_across_nodes 1", across=True)
        assert s["pages_shared"] == PAGES and s["pages_sharing"] == (2 * len(NODES) - 1) * PAGES, s
        with Checks(residents):
            d.ctl("set", "merge_across_nodes=0")
            # Each has pages of its own node again, and shares those.
            until(lambda: all(r.nodes() == [node] * PAGES for node, group in by_node.items() for r in group), SECONDS, "everyone at home")
            s = settled(d, residents, "changed to 0")
            assert s["pages_shared"] == len(NODES) * PAGES, s
            d.ctl("set", "merge_across_nodes=1")
            s = settled(d, residents, "changed to 1", across=True)
            d.ctl("set", "merge_across_nodes=0")
            d.ctl("set", "merge_across_nodes=1")
            settled(d, residents, "changed to 0 and at once to 1", across=True)
        end(d, residents)


def test_storm():
    """Pages of all processes sent from node to node while they are merged, written and looked at."""
    with Daemon("--merge_across_nodes=0") as d:
        residents = everyone(on_each_node(d, 2))
        moves = 0
        with Checks(residents, poke=True) as checks:
            ends_at = time.monotonic() + STORM_SECONDS
            while time.monotonic() < ends_at:
                r, node = random.choice(residents), random.choice(NODES)
                if random.random() < 0.2:
                    migrate_pages(r.victim.pid, node)
                else:
                    n = random.randrange(1, PAGES)
                    move_pages(r.victim.pid, r.address + random.randrange(PAGES - n) * PAGE, n, node)
                moves += 1
        print(f"   {moves} migrations, {checks.n} looks at all bytes", flush=True)
        for r in residents:  # alike again
            r.victim.do("check", "m")
            r.victim.do("unmap", "m")
            r.victim.do("map", "m", PAGES)
            r.victim.do("fill", "m", 0, PAGES, 5000)
            r.address = int(r.victim.do("address", "m").split()[1])
        settled(d, residents, "after the storm")
        end(d, residents)


class Unprivileged(Daemon):
    """As its service runs: a user of its own, which the kernel does not let ask for nodes of others."""

    def start(self):
        os.chown(self.directory, NOBODY, NOBODY)
        os.chmod(self.directory, 0o755)
        popen = subprocess.Popen
        subprocess.Popen = lambda *a, **k: popen(*a, **k, user=NOBODY, group=NOBODY, extra_groups=[])
        try:
            super().start()
        finally:
            subprocess.Popen = popen


def test_nodes_from_the_process_itself():
    device = "/dev/userfaultfd"
    mode = os.stat(device).st_mode & 0o777
    os.chmod(device, 0o666)
    try:
        with Unprivileged("--merge_across_nodes=0", "--open_to_all=yes") as d:
            by_node = on_each_node(d, 2, user=OTHER, group=OTHER)
            residents = everyone(by_node)
            with Checks(residents):
                by_node[NODES[0]][0].go(NODES[1])
                settled(d, residents, "one node's pages moved to another")
            end(d, residents)
    finally:
        os.chmod(device, mode)


# -- the kernel's own --------------------------------------------------------------------------------------------------------------

def kernel_child(node, seeds):
    """A process on the node that offers the kernel pages; (pid, address)."""
    read, write = os.pipe()
    with on_node(node):
        pid = os.fork()
    if pid == 0:
        try:
            m = mmap.mmap(-1, len(seeds) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for i, seed in enumerate(seeds):
                m[i * PAGE:(i + 1) * PAGE] = struct.pack("<Q", seed) * (PAGE // 8)
            address = ctypes.addressof(ctypes.c_char.from_buffer(m))
            if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(m)), MADV_MERGEABLE) == 0:
                os.write(write, str(address).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    address = int(os.read(read, 32) or b"0")
    os.close(read)
    return pid, address


def ksm(name, value=None):
    if value is None:
        return int((KSM / name).read_text())
    (KSM / name).write_text(str(value))
    return value


def kernel_numbers(wanted, what):
    """After the kernel has come to rest."""
    def look():
        look.last = got = ksm("pages_shared"), ksm("pages_sharing"), ksm("stable_node_chains")
        return got == wanted and got
    try:
        got = until(look, SECONDS, what)
    except AssertionError:
        raise AssertionError(f"kernel: {what}: shared, sharing, chains {look.last}, not {wanted}") from None
    print(f"   kernel's KSM, {what}: shared {got[0]}, sharing {got[1]}, chains {got[2]}", flush=True)


def test_same_numbers_as_the_kernel():
    if not os.access(KSM / "merge_across_nodes", os.W_OK):
        print("   SKIPPED: a kernel without KSM", flush=True)
        return
    before = {name: ksm(name) for name in ("run", "sleep_millisecs", "pages_to_scan", "merge_across_nodes")}
    ksm("run", 2)
    for name, value in (("merge_across_nodes", 0), ("sleep_millisecs", 1), ("pages_to_scan", 1000), ("run", 1)):
        ksm(name, value)
    children = [(node, *kernel_child(node, range(1, PAGES + 1))) for node in NODES for _ in range(3)]
    try:
        kernel_numbers((len(NODES) * PAGES, 2 * len(NODES) * PAGES, 0), f"3 on each of {len(NODES)} nodes")
        for node, pid, address in children:
            if node == NODES[0]:
                until(lambda p=pid, a=address: all(n == NODES[1] for n in move_pages(p, a, PAGES, NODES[1])) or
                      all(n == NODES[1] for n in move_pages(p, a, PAGES)), SECONDS, "moved")
        # A migrated page with several sharers joins the chain there as a dup of its own, and stays one: the kernel never moves sharers
        # from dup to dup. userksm does (test_migrated_to_where_an_equal_chain_is).
        kernel_numbers((len(NODES) * PAGES, 2 * len(NODES) * PAGES, PAGES), "one node's pages moved to another")
    finally:
        for _, pid, _ in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        ksm("run", 2)
        for name in ("merge_across_nodes", "sleep_millisecs", "pages_to_scan", "run"):
            ksm(name, before[name])


if __name__ == "__main__":
    if len(NODES) < 2:
        skip("one NUMA node: scripts/test-guest numa2 has two")
    if os.geteuid() != 0 or not SYS_MOVE_PAGES:
        skip("needs root: page frames, and pages moved that others share")
    with without_balancing():
        run(test_sharing_is_per_node, test_alone_on_its_node, test_migrated_to_where_an_equal_chain_is,
            test_migrated_to_where_nothing_is, test_there_and_back, test_cap_of_two, test_changed_live, test_storm,
            test_nodes_from_the_process_itself, test_same_numbers_as_the_kernel)
