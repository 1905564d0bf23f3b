"""Rows about what watching costs: nothing written, a tenth written, all written, nothing there."""
import dataclasses
import time

from figures import Check, difference, figure, ratio
from sides import KsmSide, Plain, UserksmSide, wait_known, wait_saved, wait_scans
from subjects import Meter, area, subjects
from workloads.base import Workload, figure_ratio


class Steady(Workload):
    name = "steady"
    title = "2 processes of 1 GiB, half of it merged and half unique, nothing written"
    target = "CPU per full pass at most 1/50 of ksmd's with smart_scan=0, 1/5 with smart_scan=1"
    shows = (("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("scans", "", "full passes"), ("pass_cpu_ms", "ms", "CPU a pass"))

    def n_pages(self, plan):
        return 2 * 2 * plan.mib(512) * 256

    def sides(self, plan, known):
        return [("userksm", UserksmSide), ("ksm", KsmSide), ("ksm smart", lambda: KsmSide(smart_scan=1))]

    def measure(self, side, plan):
        mib, n = plan.mib(512), self.n_pages(plan)
        with side, subjects(side, 2, [area("common", mib), area("unique", mib)]) as running:
            side.start_merging()
            wait_saved(side, Meter(side, running), n // 4, self.limit_s)
            wait_known(side, n, self.limit_s)
            side.set_period(plan.period_s, n)
            # What is under way at the old pace, and for smart_scan the passes until it skips as much as it will.
            wait_scans(side, 2, self.limit_s)
            scans, meter = side.scans(), Meter(side, running)
            time.sleep(plan.passes * plan.period_s)  # the window of the measurement
            found, scans = meter.read(), side.scans() - scans
        found["scans"] = scans
        if scans > 0:
            found["pass_cpu_ms"] = 1000 * (found["engine_cpu_s"] + found["agents_cpu_s"] + found["subjects_cpu_s"]) / scans
        return found

    def least_work(self, plan, middle):
        return 0, 0, 0  # nothing changes

    def spent_s(self, middle, side):
        ms = figure(middle, side, "pass_cpu_ms")
        return None if ms is None else ms / 1000

    def checks(self, middle):
        return [Check("CPU a pass, of ksmd's with smart_scan=0", figure_ratio(middle, "pass_cpu_ms"), 1 / 50, "x"),
                Check("CPU a pass, of ksmd's with smart_scan=1", figure_ratio(middle, "pass_cpu_ms", other="ksm smart"), 1 / 5, "x")]


class Dirty(Workload):
    name = "dirty"
    title = "1 GiB, every tenth page rewritten all the time, the others quiet"
    target = "CPU per pass at most 1/8 of ksmd's; writer slowdown at most 1 %"
    step, mib_full, slowdown_percent = 10, 1024, 1.0
    shows = (("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("scans", "", "full passes"), ("write_us", "us", "writer's CPU a page"), ("writer_system_s", "s", "writer's system time"),
             ("faults", "", "page faults of the writer"))

    def n_pages(self, plan):
        return plan.mib(self.mib_full) * 256

    def sides(self, plan, known):
        return [("plain", Plain), ("userksm", UserksmSide), ("ksm", KsmSide)]

    def measure(self, side, plan):
        n = self.n_pages(plan)
        with side, subjects(side, 1, [area("unique", plan.mib(self.mib_full))]) as (writer,):
            if side.offers:
                side.start_merging()
                wait_known(side, n * 0.99, self.limit_s)
                side.set_period(plan.period_s, n)
                wait_scans(side, 1, self.limit_s)
            return self.window(side, plan, writer)

    def window(self, side, plan, writer):
        scans, meter = side.scans() if side.offers else 0, Meter(side, [writer])
        wrote = self.written(writer.ask(f"write 0 {self.step} {round(plan.passes * plan.period_s * 1000)}"))
        return {**meter.read(), **wrote, "scans": side.scans() - scans if side.offers else 0}

    @staticmethod
    def written(told):
        return {"pages": told["pages"], "faults": told["minor_faults"], "write_us": told["cpu_ns"] / told["pages"] / 1000,
                "writer_system_s": told["system_usec"] / 1e6}

    def slowdown(self, middle, side, before=""):
        """Percent of its user time that the writer needed more in the kernel than without merging: the faults of tracking. The CPU time a page
        tells nothing as small: where a process's pages lie in a virtual machine makes a tenth of it, and it changes as it runs."""
        parts = {}
        for one in (side, "plain"):
            system, us, pages = (figure(middle, one, before + name) for name in ("writer_system_s", "write_us", "pages"))
            parts[one] = None if None in (system, us, pages) else ratio(system, us * pages / 1e6 - system)
        more = difference(parts[side], parts["plain"])
        return None if more is None else 100 * more

    def pass_cpu_ms(self, middle, side):
        """Of the engine and its agents, and the system time that the writer needed more: the faults of tracking. Not all of its CPU time,
        whose noise is larger than all that."""
        m, extra = middle.get(side, {}), difference(figure(middle, side, "writer_system_s"), figure(middle, "plain", "writer_system_s"))
        if extra is None or not m.get("scans"):
            return None
        return 1000 * (m["engine_cpu_s"] + m["agents_cpu_s"] + max(extra, 0)) / m["scans"]

    def least_work(self, plan, middle):
        """A pass: what was written is read, is like nothing else, and is protected again."""
        changed = self.n_pages(plan) / self.step
        return changed, 0, changed

    def spent_s(self, middle, side):
        ms = self.pass_cpu_ms(middle, side)
        return None if ms is None else ms / 1000

    def checks(self, middle):
        return [Check("CPU a pass, of ksmd's", ratio(self.pass_cpu_ms(middle, "userksm"), self.pass_cpu_ms(middle, "ksm")), 1 / 8, "x"),
                Check("writer slowdown", self.slowdown(middle, "userksm"), self.slowdown_percent, "%")]


class Hot(Dirty):
    name = "hot"
    title = "512 MiB rewritten all the time"
    target = "writer slowdown at most 1 % once backed off, at most 3 % before"
    step, mib_full = 1, 512
    before_passes = 2
    # Blocks rewritten in every pass are left out of 1, 3, 7, ... passes: of how many, after this many, which need not take as long.
    passes_until_quiet, quick_period_s = 64, 1.0
    shows = (("before_write_us", "us", "writer's CPU a page, first passes"), ("write_us", "us", "later"),
             ("before_writer_system_s", "s", "its system time, first passes"), ("writer_system_s", "s", "later"),
             ("before_faults", "", "its page faults, first passes"), ("faults", "", "later"), ("engine_cpu_s", "s", "CPU of daemon or ksmd, later"))

    def sides(self, plan, known):
        return Workload.sides(self, plan, known)

    def measure(self, side, plan):
        n = self.n_pages(plan)
        with side, subjects(side, 1, [area("unique", plan.mib(self.mib_full))]) as (writer,):
            if side.offers:
                side.start_merging()
            before = self.written(writer.ask(f"write 0 1 {round(self.before_passes * plan.period_s * 1000)}"))
            if isinstance(side, UserksmSide):
                side.set_period(self.quick_period_s, n)
                writer.ask(f"write 0 1 {round(self.passes_until_quiet * self.quick_period_s * 1000)}")
                side.set_period(plan.period_s, n)
            found = self.window(side, dataclasses.replace(plan, passes=1), writer)
            found.update({"before_" + name: value for name, value in before.items()})
        return found

    def least_work(self, plan, middle):
        return None

    def checks(self, middle):
        return [Check("writer slowdown in the first passes", self.slowdown(middle, "userksm", "before_"), 3, "%"),
                Check("writer slowdown once backed off", self.slowdown(middle, "userksm"), 1, "%")]


class Sparse(Workload):
    name = "sparse"
    title = "32 TiB of address space with one page"
    target = "a pass under 1 ms"
    period_s = 0.01
    shows = (("pass_cpu_ms", "ms", "CPU a pass"), ("scans", "", "full passes"))

    def sides(self, plan, known):
        return [("userksm", lambda: UserksmSide(self.period_s)), ("ksm", KsmSide)]

    def measure(self, side, plan):
        with side, subjects(side, 1, ["sparse:8589934592"]) as running:
            side.start_merging()
            wait_scans(side, 2, self.limit_s)
            scans, meter = side.scans(), Meter(side, running)
            time.sleep(min(plan.passes, 10))
            found, scans = meter.read(), side.scans() - scans
        found["scans"] = scans
        found["pass_cpu_ms"] = 1000 * (found["engine_cpu_s"] + found["agents_cpu_s"]) / max(scans, 1)
        return found

    def checks(self, middle):
        return [Check("CPU a pass", figure(middle, "userksm", "pass_cpu_ms"), 1.0, "ms")]
