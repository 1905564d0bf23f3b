"""Rows about size: how cost grows with memory and processes, what the books take, and how soon a late process shares."""
import pathlib

from figures import Check, figure
from sides import KsmSide, Plain, UserksmSide, wait_known, wait_saved  # first: it knows where measure is
from measure import meminfo_mib
from subjects import Meter, area, subjects
from workloads.base import Workload

DONE = 0.99
# Of what is available, for what a row fills itself.
MEMORY_SHARE = 0.75


def status_kib(pid, name):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


class Growth(Workload):
    name = "growth"
    title = "userksm alone: 2 processes of 32 MiB to 8 GiB, and 1 GiB in 1 to 200 processes; half common, half unique"
    target = "CPU per page within 20 %"
    sizes_mib = (64, 256, 1024, 4096, 16384)
    processes = (2, 8, 50, 200)
    all_mib = 1024
    profiled = ("1024 MiB", "16384 MiB", "200 processes")
    shows = (("page_us", "us", "CPU a page until all is merged"), ("wall_s", "s", "time"), ("scans", "", "full passes"),
             ("engine_cpu_s", "s", "CPU of the daemon"), ("agents_cpu_s", "s", "CPU of agents"))

    def sides(self, plan, known):
        found = []
        for mib in self.sizes_mib:
            if mib * plan.scale < MEMORY_SHARE * meminfo_mib("MemAvailable"):
                found.append((f"{mib} MiB", lambda mib=mib: self.side(2, plan.mib(mib))))
        return found + [(f"{n} processes", lambda n=n: self.side(n, plan.mib(self.all_mib))) for n in self.processes]

    @staticmethod
    def side(n, mib):
        side = UserksmSide()
        side.n_processes, side.each_mib = n, max(1, mib // n // 2)
        return side

    def measure(self, side, plan):
        n_pages = 2 * side.n_processes * side.each_mib * 256
        with side, subjects(side, side.n_processes, [area("common", side.each_mib), area("unique", side.each_mib)]) as running:
            meter = Meter(side, running)
            side.start_merging()
            wait_saved(side, meter, (side.n_processes - 1) * side.each_mib * 256 * DONE, self.limit_s)
            wait_known(side, n_pages * DONE, self.limit_s)
            found = {**meter.read(), "scans": side.scans()}
        found["page_us"] = 1e6 * (found["engine_cpu_s"] + found["agents_cpu_s"] + found["subjects_cpu_s"]) / n_pages
        return found

    def checks(self, middle):
        checks = []
        for what, unit in (("sizes", "MiB"), ("numbers of processes", "processes")):
            costs = [m["page_us"] for label, m in middle.items() if label.endswith(unit) and "page_us" in m]
            checks.append(Check(f"dearest by cheapest page, {what}", max(costs) / min(costs) if len(costs) > 1 else None, 1.2, "x"))
        return checks


class Metadata(Workload):
    name = "metadata"
    title = "4 processes of 512 MiB, half common, half unique, all merged; and what an agent adds to a process of 64 pages, merged"
    target = ("books at most 24 bytes x tracked pages + 48 bytes x VMAs used; daemon at most 8 MiB + that; agent at most 256 KiB a process "
              "+ scratch")
    few_pages, scratch_kib = 64, 256  # scratch: the bytes of a block
    shows = (("tracked_pages", "", "tracked pages"), ("vmas", "", "VMAs used"), ("metadata_kib", "KiB", "books"), ("allowed_kib", "KiB", "books allowed"),
             ("daemon_kib", "KiB", "daemon's own memory"), ("subject_kib", "KiB", "memory of a process of 64 pages"))

    def sides(self, plan, known):
        return [("plain", Plain), ("userksm", UserksmSide)]

    def measure(self, side, plan):
        with side, subjects(side, 2, [f"common:{self.few_pages}"]) as running:
            if side.offers:
                side.start_merging()
                wait_saved(side, Meter(side, running), self.few_pages, self.limit_s)
            found = {"subject_kib": status_kib(running[0].pid, "RssAnon")}
        if side.offers:
            found["subject_kib"] += 4 * self.few_pages  # which are the segment's now
            found.update(self.books(UserksmSide(), plan))
        return found

    def books(self, side, plan):
        mib = plan.mib(256)
        with side, subjects(side, 4, [area("common", mib), area("unique", mib)]) as running:
            side.start_merging()
            wait_saved(side, Meter(side, running), 3 * mib * 256 * DONE, self.limit_s)
            wait_known(side, 8 * mib * 256 * DONE, self.limit_s)
            stats = side.stats()
            return {"tracked_pages": stats["tracked_pages"], "vmas": stats["vmas_used"], "metadata_kib": stats["metadata_bytes"] / 1024,
                    "allowed_kib": (24 * stats["tracked_pages"] + 48 * stats["vmas_used"]) / 1024,
                    "daemon_kib": status_kib(side.daemon.pid, "RssAnon") + status_kib(side.daemon.pid, "RssFile")}

    def checks(self, middle):
        ours, plain = middle.get("userksm", {}), middle.get("plain", {})
        if "metadata_kib" not in ours or "subject_kib" not in plain:
            return [Check("books, of what is allowed", None, 1.0, "x")]
        return [Check("books, of what is allowed", ours["metadata_kib"] / ours["allowed_kib"], 1.0, "x"),
                Check("daemon beyond the books", (ours["daemon_kib"] - ours["allowed_kib"]) / 1024, 8, "MiB"),
                Check("agent, its scratch included", ours["subject_kib"] - plain["subject_kib"], 256 + self.scratch_kib, "KiB")]


class LateWorker(Workload):
    name = "late-worker"
    title = "12 processes of 64 MiB common and 16 MiB unique have merged; a 13th starts"
    target = "90 % of what it can share is shared within 2 s of its last write"
    n_processes, part = 12, 0.9
    shows = (("late_s", "s", "time to 90 % of what the 13th shares"), ("late_cpu_s", "s", "CPU of daemon or ksmd for it"))

    def sides(self, plan, known):
        n = (self.n_processes + 1) * (plan.mib(64) + plan.mib(16)) * 256
        return [("userksm", UserksmSide), ("ksm", lambda: KsmSide(n_pages=n, period_s=1.0))]

    def measure(self, side, plan):
        areas, common = [area("common", plan.mib(64)), area("unique", plan.mib(16))], plan.mib(64) * 256
        with side, subjects(side, self.n_processes, areas) as running:
            side.start_merging()
            wait_saved(side, Meter(side, running), (self.n_processes - 1) * common * DONE, self.limit_s)
            with subjects(side, 1, areas, first=self.n_processes) as late:  # which offers itself right after its last write
                meter, before = Meter(side, running + late), side.saved_pages()
                wait_saved(side, meter, before + self.part * common, self.limit_s)
                found = meter.read()
        return {**found, "late_s": found["wall_s"], "late_cpu_s": found["engine_cpu_s"] + found["agents_cpu_s"]}

    def least_work(self, plan, middle):
        shared = self.part * plan.mib(64) * 256
        return (plan.mib(64) + plan.mib(16)) * 256, shared, shared

    def spent_s(self, middle, side):
        return figure(middle, side, "late_cpu_s")

    def checks(self, middle):
        return [Check("time to 90 %", figure(middle, "userksm", "late_s"), 2.0, "s")]
