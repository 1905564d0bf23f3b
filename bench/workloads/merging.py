"""Rows about merging and taking apart: CPU and time until it is done, and what the processes feel."""
from figures import Check, difference, figure, percentile
from sides import KsmSide, Plain, UserksmSide, wait_saved
from subjects import Meter, area, subjects, warm
from workloads.base import Workload, cost_ratio, figure_ratio, time_ratio_at_equal_share

DONE = 0.99


class Converge(Workload):
    name = "converge"
    title = "4 processes of 512 MiB, half of it common in long runs, half unique"
    target = "CPU and wall time to 99 % of the oracle at most 1/2 of ksmd's"
    n_processes, mib_full = 4, 256
    shows = (("wall_s", "s", "time to 99 %"), ("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("agents_cpu_s", "s", "CPU of agents"),
             ("share", "", "share of a CPU"), ("subjects_cpu_s", "s", "CPU of the processes"))

    def n_pages(self, plan):
        return self.n_processes * 2 * plan.mib(self.mib_full) * 256

    def areas(self, plan):
        return [area("common", plan.mib(self.mib_full)), area("unique", plan.mib(self.mib_full))]

    def oracle_pages(self, plan):
        return (self.n_processes - 1) * plan.mib(self.mib_full) * 256

    def sides(self, plan, known):
        n = self.n_pages(plan)

        def equal_cpu():
            return KsmSide.for_share("ksm, equal CPU", known["userksm"]["share"], known["ksm"]["page_usec"])
        return [("plain", Plain), ("userksm", lambda: UserksmSide(plan.period_s)),
                ("ksm", lambda: KsmSide(n_pages=n, period_s=plan.period_s)), ("ksm, equal CPU", equal_cpu)]

    def measure(self, side, plan):
        with side, subjects(side, self.n_processes, self.areas(plan)) as running:
            warm(plan.mib(self.mib_full))  # for the shared pages
            meter, curve = Meter(side, running), None
            scanned = side.scanned() if isinstance(side, KsmSide) else 0
            if side.offers:
                side.start_merging()
                curve = wait_saved(side, meter, self.oracle_pages(plan) * DONE, self.limit_s)
            found = {**meter.read(), "curve": curve}
            found["saved_mib"] = side.saved_pages() / 256
            if side.offers:
                found["share"] = (found["engine_cpu_s"] + found["agents_cpu_s"]) / found["wall_s"]
            if isinstance(side, KsmSide):
                found["page_usec"] = 1e6 * found["engine_cpu_s"] / (side.scanned() - scanned)
        return found

    def least_work(self, plan, middle):
        """Every page is new. The first copy of a page is compared with nothing, but mapped otherwise, too."""
        saved = self.oracle_pages(plan)
        return self.n_pages(plan), saved, saved * self.n_processes / (self.n_processes - 1)

    def checks(self, middle):
        return [Check("CPU to 99 % of the oracle, of ksmd's", cost_ratio(middle), 1 / 2, "x"),
                Check("wall time, of ksmd's at the same period", figure_ratio(middle, "wall_s"), 1 / 2, "x"),
                Check("wall time, of ksmd's at equal CPU", time_ratio_at_equal_share(middle, "wall_s"), 1 / 2, "x")]


class Scattered(Converge):
    name = "scattered"
    title = "4 processes of 256 MiB, every 8th page common, in a different order in each"
    target = "CPU per merged page at most 2.5 times ksmd's; the same savings until the VMA budget"
    stride, mib_full = 8, 256
    # Short runs wait for two more passes.
    quiet_passes = 5
    shows = (("page_us", "us", "CPU a saved page"), ("saved_mib", "MiB", "saved"), ("wall_s", "s", "time"),
             ("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("agents_cpu_s", "s", "CPU of agents"))

    def n_pages(self, plan):
        return self.n_processes * plan.mib(self.mib_full) * 256

    def areas(self, plan):
        return [area("scattered", plan.mib(self.mib_full), self.stride)]

    def oracle_pages(self, plan):
        return (self.n_processes - 1) * plan.mib(self.mib_full) * 256 // self.stride

    def sides(self, plan, known):
        return Workload.sides(self, plan, known)

    def measure(self, side, plan):
        with side, subjects(side, self.n_processes, self.areas(plan)) as running:
            meter = Meter(side, running)
            curve = None
            if side.offers:
                side.start_merging()
                curve = wait_saved(side, meter, self.oracle_pages(plan) * DONE, self.limit_s, self.quiet_passes * plan.period_s)
            found = {**meter.read(), "curve": curve, "saved_mib": side.saved_pages() / 256}
        if found["saved_mib"]:
            found["page_us"] = 1e6 * sum(found[f"{part}_cpu_s"] for part in ("engine", "agents", "subjects")) / (found["saved_mib"] * 256)
        return found

    def checks(self, middle):
        return [Check("CPU a saved page, of ksmd's", figure_ratio(middle, "page_us"), 2.5, "x"),
                Check("saved, of what ksmd saves", figure_ratio(middle, "saved_mib"), DONE, "x", at_least=True)]


class Stall(Converge):
    name = "stall"
    title = "4 processes of 256 MiB that load words at random places of their memory all the time, while half of it is merged"
    target = "time an access waited on a page in transition: p99.9 at most 200 us, maximum reported"
    mib_full, visit_seconds = 128, 15  # in which all is merged, beside four that want two processors
    shows = (("saved_mib", "MiB", "saved by then"), ("waits", "", "accesses that waited"), ("p999_us", "us", "p99.9 of these waits"), ("longest_us", "us", "longest access of any kind"),
             ("visits", "", "accesses timed"))

    def least_work(self, plan, middle):
        return None

    def sides(self, plan, known):
        return [("plain", Plain), ("userksm", UserksmSide), ("ksm", KsmSide)]

    def measure(self, side, plan):
        with side, subjects(side, self.n_processes, self.areas(plan)) as running:
            meter = Meter(side, running)
            for s in running:
                s.tell(f"visit {self.visit_seconds * 1000}")
            if side.offers:
                side.start_merging()
            told = [s.answer() for s in running]
            found = {**meter.read(), "visits": sum(t["samples"] for t in told), "longest_us": max(t["max_ns"] for t in told) / 1000}
            if side.offers:
                found["saved_mib"] = side.saved_pages() / 256
            if isinstance(side, UserksmSide):
                waits = side.waits()
                found["waits"] = sum(n for _, n in waits)
                if found["waits"]:
                    found["p999_us"] = percentile(waits, 0.999)
        return found

    def checks(self, middle):
        return [Check("p99.9 of the waits", figure(middle, "userksm", "p999_us"), 200, "us")]


class Pair(Workload):
    """Two equal processes, merged as fast as each side can; then something happens to the first."""
    mib_full = 256

    def n_pages(self, plan):
        return 2 * plan.mib(self.mib_full) * 256

    def sides(self, plan, known):
        return [("plain", Plain), ("userksm", UserksmSide), ("ksm", KsmSide)]

    def measure(self, side, plan):
        with side, subjects(side, 2, [area("common", plan.mib(self.mib_full))]) as running:
            if side.offers:
                side.start_merging()
                wait_saved(side, Meter(side, running), self.n_pages(plan) // 2 * DONE, self.limit_s)
            warm(plan.mib(self.mib_full))
            return self.happens(side, running)


class Unmerge(Pair):
    name = "unmerge"
    title = "1 GiB of merged memory is given private copies: MADV_UNMERGEABLE in one of two equal processes"
    target = "CPU at most ksmd's"
    mib_full = 1024
    shows = (("wall_s", "s", "time of the call"), ("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("agents_cpu_s", "s", "CPU of agents"),
             ("subjects_cpu_s", "s", "CPU of the processes"))

    def happens(self, side, running):
        meter = Meter(side, running)
        if side.offers:
            running[0].ask("unmerge")
        return meter.read()

    def checks(self, middle):
        return [Check("CPU, of kernel KSM's", cost_ratio(middle), 1.0, "x")]


class FirstWrite(Pair):
    name = "first-write"
    title = "the first store to each of 65,536 merged pages"
    target = "p50 and p99 at most kernel KSM's"
    shows = (("p50_us", "us", "p50"), ("p99_us", "us", "p99"), ("max_us", "us", "longest"))

    def happens(self, side, running):
        meter = Meter(side, running)
        told = running[0].ask("poke 0 1")
        return {**meter.read(), **{f"{p}_us": told[f"{p}_ns"] / 1000 for p in ("p50", "p99", "p999", "max")}, "faults": told["minor_faults"]}

    def checks(self, middle):
        return [Check("p50, of kernel KSM's", figure_ratio(middle, "p50_us"), 1.0, "x"),
                Check("p99, of kernel KSM's", figure_ratio(middle, "p99_us"), 1.0, "x")]


class FirstRead(Pair):
    name = "first-read"
    title = "the first load from each of 65,536 merged pages"
    target = "no more faults than under kernel KSM"
    shows = (("faults", "", "page faults"), ("p50_us", "us", "p50"), ("p99_us", "us", "p99"))

    def happens(self, side, running):
        meter = Meter(side, running)
        told = running[0].ask("read 0 1")
        return {**meter.read(), **{f"{p}_us": told[f"{p}_ns"] / 1000 for p in ("p50", "p99", "max")}, "faults": told["minor_faults"]}

    def checks(self, middle):
        more = difference(figure(middle, "userksm", "faults"), figure(middle, "ksm", "faults"))
        return [Check("page faults beyond kernel KSM's", more, 0)]
