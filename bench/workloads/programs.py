"""Rows of real programs: what both sides save of them, how soon, and what the programs feel."""
import dataclasses
import re
import shutil
import statistics
import subprocess
import time

from figures import Check, difference, figure, ratio, reached
from sides import KsmSide, Plain, UserksmSide, process_cpu_s, program_user_system_s  # first: it knows where the programs are
from measure import IDEAL, Skip, Wrong, oracle_mib, sum_pss_mib, wait_stable, wait_until
from python_set import PythonNoAslrSet, PythonSet
from qemu_set import QemuSet
from redis_set import RedisSet
from subjects import Meter
from worker_sets import JavaSet, NodeSet
from workloads.base import Workload, figure_ratio, time_ratio_at_equal_share

LOOK_SECONDS = 0.25
KSM_PERIOD_S = 1.0  # userksm's default
# Of what kernel KSM saves, for the time that it takes.
ENOUGH = 0.9
# What is saved grows when it grows by more than this part.
RISE = 0.001
# How long programs work in the end, and how often at least.
WORK_SECONDS, WORK_TIMES = 8, 2
# Until programs that have done their work once keep their memory as it is.
SETTLE_SECONDS, SETTLE_LIMIT_SECONDS = 4, 30


@dataclasses.dataclass
class Running:
    """What Meter wants to know of a process."""
    pid: int

    def cpu_s(self):
        return 0.0  # programs work for themselves, as much as they like


class Programs(Workload):
    """One set of equal programs. They load first, then merging starts while they rest, then they work again. Saved is the fall of the sum of
    their PSS."""
    make = None  # the set of programs
    quiet_s, limit_s = 8, 300
    target = ("saved at least 95 % of what ksmd saves; time to 90 % of that at most 1/2 of ksmd's at equal CPU; application throughput within "
              "1 %")
    shows = (("saved_mib", "MiB", "saved"), ("oracle_mib", "MiB", "oracle"), ("to90_s", "s", "time to 90 % of what ksmd saves"),
             ("to90_cpu_s", "s", "CPU until then"), ("share", "", "share of a CPU until then"),
             ("engine_cpu_s", "s", "CPU of daemon or ksmd, all in all"), ("agents_cpu_s", "s", "CPU of agents, all in all"),
             ("work_cpu_s", "s", "programs' CPU for one round of their work"), ("work_system_s", "s", "of it system time"))

    def sides(self, plan, known):
        def ksm():
            return KsmSide(n_pages=round(known["userksm"]["candidate_pages"]), period_s=KSM_PERIOD_S)

        def equal_cpu():
            if "share" not in known["userksm"]:
                raise RuntimeError("userksm has not saved what kernel KSM's CPU time could be set to")
            return KsmSide.for_share("ksm, equal CPU", known["userksm"]["share"], known["ksm"]["page_usec"])
        return [("plain", Plain), ("userksm", UserksmSide), ("ksm", ksm), ("ksm, equal CPU", equal_cpu)]

    def measure(self, side, plan):
        if not IDEAL.exists():
            raise Skip(f"{IDEAL} is not built")
        programs, found = self.make(), {}
        with side:
            try:
                programs.start(side)
                pids = programs.pids()
                self.settle(programs, pids)
                if side.offers:
                    found = self.merge(side, programs, pids)
                user, system = self.work(side, programs, pids)
                found.update(work_cpu_s=user + system, work_user_s=user, work_system_s=system)
            finally:
                programs.stop()
        return found

    def settle(self, programs, pids):
        """Until the programs take and give back no memory by themselves."""
        programs.verify()
        wait_stable(pids, SETTLE_SECONDS, SETTLE_LIMIT_SECONDS)

    def merge(self, side, programs, pids):
        oracle, answer = oracle_mib(pids, programs.ranges)
        meter = Meter(side, [Running(pid) for pid in pids])
        before, scanned = sum_pss_mib(pids), self.scanned(side)
        side.start_merging()
        curve = self.converge(side, meter, lambda: [before - sum_pss_mib(pids), self.scanned(side) - scanned])
        found = {**meter.read(), "curve": curve, "oracle_mib": oracle, "saved_mib": self.saved_at_end(curve)}
        total = answer["total"]
        found.update(candidate_pages=total["pages"], duplicate_pages=total["duplicate_pages"] + total["zero_pages"])
        return found

    @staticmethod
    def scanned(side):
        return side.scanned() if isinstance(side, KsmSide) else 0

    def saved_at_end(self, curve):
        """The mean over the quiet time: programs that work all the time write to merged pages."""
        return statistics.mean(saved for seconds, _, saved, _ in curve if seconds >= curve[-1][0] - self.quiet_s / 2)

    def work(self, side, programs, pids):
        """User and system time of the programs, without their agents, for one round of what they do. Merged pages that it writes to become
        private again meanwhile, and those faults are in it: the mean of several rounds, not the least."""
        begin, start, times = [program_user_system_s(pid) for pid in pids], time.monotonic(), 0
        while times < WORK_TIMES or time.monotonic() - start < WORK_SECONDS:
            programs.verify()
            times += 1
        end = [program_user_system_s(pid) for pid in pids]
        return [sum(after[i] - before[i] for before, after in zip(begin, end)) / times for i in range(2)]

    def converge(self, side, meter, saved_and_scanned):
        """Until nothing more has been saved for a while, and ksmd has had its passes."""
        curve, best, last_rise, first_scan = [], 0, 0, side.scans()

        def look():
            nonlocal best, last_rise
            (saved, scanned), cost = saved_and_scanned(), meter.read()
            curve.append([round(cost["wall_s"], 2), round(cost["engine_cpu_s"] + cost["agents_cpu_s"], 3), round(saved, 1), scanned])
            if saved > best * (1 + RISE):
                best, last_rise = saved, cost["wall_s"]
            return cost["wall_s"] - last_rise >= self.quiet_s and side.scans() >= first_scan + 3
        wait_until(look, self.limit_s, f"{side.label}: no more saved", LOOK_SECONDS)
        return curve

    def finish(self, known, curves):
        """Time and CPU to 90 % of what kernel KSM saves, which is known when that has run."""
        if "ksm" not in known:
            return
        for side, curve in curves.items():
            point = reached(curve, ENOUGH * known["ksm"]["saved_mib"])
            if point:
                seconds, cpu, _, scanned = point
                known[side].update(to90_s=round(seconds, 3), to90_cpu_s=round(cpu, 4), share=round(cpu / seconds, 4))
                if scanned:
                    known[side]["page_usec"] = round(1e6 * cpu / scanned, 3)

    def least_work(self, plan, middle):
        """All is read once; 90 % of what there is to save is compared and mapped. As far as the time to 90 % goes."""
        ours = middle.get("userksm", {})
        if "duplicate_pages" not in ours:
            return None
        return ours["candidate_pages"], ENOUGH * ours["oracle_mib"] * 256, ENOUGH * ours["duplicate_pages"]

    def spent_s(self, middle, side):
        return figure(middle, side, "to90_cpu_s")

    def checks(self, middle):
        parts = [ratio(figure(middle, side, "work_system_s"), figure(middle, side, "work_user_s")) for side in ("userksm", "plain")]
        slowdown = difference(*parts)
        return [Check("saved, of what ksmd saves", figure_ratio(middle, "saved_mib"), 0.95, "x", at_least=True),
                Check("time to 90 % of that, of ksmd's at equal CPU", time_ratio_at_equal_share(middle, "to90_s"), 0.5, "x"),
                Check("programs' slowdown", None if slowdown is None else 100 * slowdown, 1.0, "%")]


class Redis(Programs):
    name, make = "redis", RedisSet
    title = RedisSet.describes


class Python(Programs):
    name, make = "python", PythonSet
    title = PythonSet.describes


class PythonNoAslr(Programs):
    name, make = "python-noaslr", PythonNoAslrSet
    title = PythonNoAslrSet.describes


class Qemu(Programs):
    name, make = "qemu", QemuSet
    title = QemuSet.describes

    def settle(self, programs, pids):
        """They work all the time, and take and give back memory for it."""

    def work(self, side, programs, pids):
        """Guests work all the time, in rounds with seconds of sleep between them. From the sleep after one to the sleep after another, each
        guest's own."""
        first, begin, used = [programs.rounds(n) for n in range(len(pids))], {}, {}

        def look():
            for n in range(len(pids)):
                done = programs.rounds(n) - first[n]
                if done >= 1 and n not in begin:
                    begin[n] = (done, program_user_system_s(pids[n]))
                if done >= 1 + WORK_TIMES and n not in used:
                    used[n] = [(now - then) / (done - begin[n][0]) for now, then in zip(program_user_system_s(pids[n]), begin[n][1])]
            return len(used) == len(pids)
        wait_until(look, self.limit_s * 2, f"{side.label}: rounds of the guests", LOOK_SECONDS)
        return [sum(times[i] for times in used.values()) for i in range(2)]


class Node(Programs):
    name, make = "node", NodeSet
    title = NodeSet.describes


class Java(Programs):
    name, make = "java", JavaSet
    title = JavaSet.describes


class RedisLatency(Workload):
    name = "redis-latency"
    title = "redis-benchmark SET and GET on one of 4 redis-server with equal keys, from the start of merging on"
    target = "p99 at most ksmd's; throughput within 1 % of none merging"
    servers, keys, clients = 4, 50_000, 20
    requests = 400_000
    shows = (("set_p99_ms", "ms", "SET p99"), ("get_p99_ms", "ms", "GET p99"), ("set_max_ms", "ms", "SET longest"), ("get_max_ms", "ms", "GET longest"),
             ("requests_cpu_us", "us", "server's CPU a request"), ("requests_s", "/s", "requests"))

    def sides(self, plan, known):
        n = self.servers * self.keys * 1.3 / 3  # pages of so many keys of 1 KiB, roughly
        return [("plain", Plain), ("userksm", UserksmSide), ("ksm", lambda: KsmSide(n_pages=round(n), period_s=KSM_PERIOD_S))]

    def measure(self, side, plan):
        if not shutil.which("redis-benchmark"):
            raise Skip("redis-benchmark is not installed (package redis-tools)")
        servers = RedisSet(keys=self.keys, servers=self.servers)
        with side:
            try:
                servers.start(side)
                pid = servers.pids()[0]
                side.start_merging()
                return self.load(side, Meter(side, [Running(pid)]), servers, pid, round(self.requests * min(1, plan.scale)))
            finally:
                servers.stop()

    def load(self, side, meter, servers, pid, n):
        path, cpu = servers.connections[0].socket.getpeername(), process_cpu_s(pid)
        begin, agents = time.monotonic(), side.agents_cpu_s([pid])
        # Keys of its own in a database of its own: ours are checked.
        out = subprocess.run(["redis-benchmark", "-s", path, "--dbnum", "1", "-t", "set,get", "-n", str(n), "-r", "20000", "-d", "700", "-c",
                              str(self.clients), "--csv"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
        elapsed = time.monotonic() - begin
        cpu = process_cpu_s(pid) - cpu - (side.agents_cpu_s([pid]) - agents)
        found = {**meter.read(), "requests_s": 2 * n / elapsed, "requests_cpu_us": 1e6 * cpu / (2 * n)}
        # "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
        for test, values in re.findall(r'^"(SET|GET)",(.*)$', out, re.MULTILINE):
            values = [float(v.strip('"')) for v in values.split(",")]
            found[f"{test.lower()}_p99_ms"], found[f"{test.lower()}_max_ms"] = values[5], values[6]
        if "get_p99_ms" not in found:
            raise Wrong(f"redis-benchmark said {out!r}")
        servers.verify()
        return found

    def checks(self, middle):
        more = figure_ratio(middle, "requests_cpu_us", "userksm", "plain")
        return [Check("SET p99, of ksmd's", figure_ratio(middle, "set_p99_ms"), 1.0, "x"),
                Check("GET p99, of ksmd's", figure_ratio(middle, "get_p99_ms"), 1.0, "x"),
                Check("server's CPU a request, more than without merging", None if more is None else 100 * (more - 1), 1.0, "%")]
