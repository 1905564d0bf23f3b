"""Where the CPU time of a row goes: perf, from the beginning of what is measured (subjects.Meter) on."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from sides import AGENT_THREAD, KsmSide  # first: it knows where measure is
from measure import Skip, spawn, wait_until
from subjects import Meter

FREQUENCY = 999
# For each processor. What perf has no room for is lost in bursts, and with it whole phases: on a busy machine it may not run for seconds.
BUFFER = "16M"
# Threads that work for merging: the daemon's (its workers have its name), the agents', the kernel's.
THREADS = ("userksmd", AGENT_THREAD, "ksmd")
LINES = 10
# What functions are for, the first that fits; k: the kernel's, a dot: the program's own.
GROUPS = tuple((name, re.compile(pattern)) for name, pattern in (
    ("hashing", r"XXH|xxh"),
    ("comparing", r"memcmp"),
    ("reading pages", r"_copy_to_iter|copy_page_to_iter|process_vm_rw|get_user_pages|follow_page|gup_|grab_folio|pin_user|unpin_user|mem_rw|"
                      r"access_remote|__pi_memcpy|_copy_to_user|_copy_from_user|check_object_size|ksm_get_folio"),
    ("finding pages and what changed", r"pagemap|ksm_scan_thread|ksm_next_page|folio_walk|walk_p|walk_page|vma_pgtable_walk|make_uffd_wp|mtree_|"
                                       r"mas_|pte_offset|vm_normal_page"),
    ("tables of what is known", r"^\[\.\]|rb_|stable_tree|stable_node|rmap_item|kmem_cache|slab|cmp_and_merge"),
    ("changing mappings", r"mfill|uffd|userfault|move_p|mremap|mmap|vma|unmap|change_p|pte|zap_|pages_and_swap|tlb|rmap|try_to_merge|"
                          r"write_protect_page|replace_page|mprotect|madvise|fault"),
    ("allocating and freeing", r"clear_page|shmem|filemap|xas_|alloc|charge|free_|frozen|lru|folio_add|folio_put|mark_accessed|pfnblock|"
                               r"page_state|lruvec"),
    ("locks, switches and system calls", r"lock|rcu|up_read|down_read|up_write|down_write|sched|switch|softirq|syscall|entry_|resched|futex|wait|wake"),
    ("the rest of the kernel", r""),
))


def grouped(functions):
    """[(percent, thread, function)] -> [(percent, group)], the dearest first."""
    shares = {}
    for percent, _, function in functions:
        name = next(name for name, pattern in GROUPS if pattern.search(function))
        shares[name] = shares.get(name, 0) + percent
    return sorted(((round(percent, 1), name) for name, percent in shares.items()), reverse=True)


class Profiler:
    """Inside it a machine-wide perf waits for the first Meter; functions() then says where the threads that merge spent their time."""

    def __enter__(self):
        if not shutil.which("perf"):
            raise Skip("perf is not installed (package linux-perf)")
        self.pids = set()  # others may merge on this machine, too
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="userksm-perf-"))
        self.data, control, answers = (self.directory / name for name in ("data", "control", "answers"))
        for fifo in (control, answers):
            os.mkfifo(fifo)
        self.control, self.answers = os.open(control, os.O_RDWR), os.open(answers, os.O_RDWR | os.O_NONBLOCK)
        self.perf = spawn(["perf", "record", "-a", "-q", "-F", FREQUENCY, "-m", BUFFER, "-D", "-1", "--control", f"fifo:{control},{answers}", "-o", self.data],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Meter.begun = self.enable
        return self

    def _answered(self):
        if self.perf.poll() is not None:
            raise Skip("perf cannot record on this machine")
        try:
            return os.read(self.answers, 16)
        except BlockingIOError:
            return None

    def enable(self, meter):
        own = [meter.side.ksmd] if isinstance(meter.side, KsmSide) else meter.side.own_pids()
        self.pids.update(own, (s.pid for s in meter.running))
        os.write(self.control, b"enable\n")
        wait_until(self._answered, 10, "perf")

    def functions(self):
        """[(percent of these threads' time, thread, function)], the dearest first."""
        if self.perf.poll() is None:
            self.perf.terminate()
            self.perf.wait()
        out = subprocess.run(["perf", "report", "-i", self.data, "--stdio", "--no-children", "-g", "none", "--percentage", "relative", "--comms",
                              ",".join(THREADS), "--pid", ",".join(map(str, self.pids)), "--sort", "comm,symbol", "-t", "\t"], capture_output=True, text=True).stdout
        lost = re.search(r"^# Total Lost Samples: (\d+)", out, re.MULTILINE)
        if not lost or int(lost[1]) > 0:
            raise RuntimeError(f"perf lost {lost[1] if lost else 'all'} samples: this is no profile")
        found = []
        for line in out.splitlines():
            if line and not line.startswith("#"):
                percent, thread, function = (field.strip() for field in line.split("\t")[:3])
                found.append([float(percent.rstrip("%")), thread, function])
        return sorted(found, reverse=True)

    def __exit__(self, *exception):
        Meter.begun = None
        if self.perf.poll() is None:
            self.perf.kill()
        self.perf.wait()
        os.close(self.control)
        os.close(self.answers)
        shutil.rmtree(self.directory, ignore_errors=True)


def profile_row(row, plan, result):
    """One more run of the sides that tell most, of which only this is kept: perf costs, and would be in the figures."""
    known, profile = result["rounds"][-1], {}
    sides = dict(row.sides(plan, known))
    for label in row.profiled:
        if label in sides:
            with Profiler() as profiler:
                row.measure(sides[label](), plan)
                functions = profiler.functions()
                profile[label] = {"groups": grouped(functions), "functions": functions[:LINES]}
    return profile
