"""Rows of real programs: what both sides save of them, how soon, and what the programs feel."""
import dataclasses
import re
import shutil
import subprocess
import time

from figures import Check
from sides import KsmSide, Plain, UserksmSide, ksm_pages_for_share, process_cpu_s  # first: it knows where the programs are
from measure import IDEAL, Skip, Wrong, oracle_mib, sum_pss_mib, wait_until
from python_set import PythonNoAslrSet, PythonSet
from qemu_set import QemuSet
from redis_set import RedisSet
from subjects import Meter
from worker_sets import JavaSet, NodeSet
from workloads.base import Workload, figure_ratio

LOOK_SECONDS = 0.25
KSM_PERIOD_S = 1.0  # userksm's default
KSM_MERGE_USEC = 2.5


@dataclasses.dataclass
class Running:
    """What Meter wants to know of a process."""
    pid: int

    def cpu_s(self):
        return 0.0  # programs work for themselves, as much as they like


def time_to(curve, mib):
    """When a curve of [seconds, CPU, MiB] first reached so much; None: never."""
    return next((seconds for seconds, _, saved in curve if saved >= mib), None)


class Programs(Workload):
    """One set of equal programs. They load first; then merging starts. Saved is the fall of the sum of their PSS."""
    make = None  # the set of programs
    quiet_s, limit_s = 12, 300
    target = "saved at least 95 % of what ksmd saves; time to 90 % of that at most 1/2 of ksmd's at equal CPU"
    shows = (("saved_mib", "MiB", "saved"), ("oracle_mib", "MiB", "oracle"), ("to90_s", "s", "time to 90 % of what ksmd saves"),
             ("engine_cpu_s", "s", "CPU of daemon or ksmd"), ("agents_cpu_s", "s", "CPU of agents"))

    def sides(self, plan, known):
        def ksm():
            return KsmSide(n_pages=round(known["userksm"]["candidate_pages"]), period_s=KSM_PERIOD_S)

        def equal_cpu():
            ours = known["userksm"]
            share = min((ours["engine_cpu_s"] + ours["agents_cpu_s"]) / ours["busy_s"], 0.9)
            return KsmSide("ksm, equal CPU", pages_to_scan=ksm_pages_for_share(share, KSM_MERGE_USEC))
        return [("userksm", UserksmSide), ("ksm", ksm), ("ksm, equal CPU", equal_cpu)]

    def measure(self, side, plan):
        if not IDEAL.exists():
            raise Skip(f"{IDEAL} is not built")
        programs = self.make()
        with side:
            try:
                programs.start(side)
                pids = programs.pids()
                oracle, answer = oracle_mib(pids, programs.ranges)
                before = sum_pss_mib(pids)
                meter = Meter(side, [Running(pid) for pid in pids])
                side.start_merging()
                curve = self.converge(side, meter)
                found = {**meter.read(), "curve": curve, "oracle_mib": oracle, "saved_mib": before - sum_pss_mib(pids),
                         "candidate_pages": answer["total"]["pages"]}
                programs.verify()
            finally:
                programs.stop()
        most = curve[-1][2]
        # The time in which it worked: until it had nearly all.
        found["busy_s"] = max(time_to(curve, 0.97 * most), LOOK_SECONDS)
        return found

    def converge(self, side, meter):
        """Until nothing has been saved any more for a while, and ksmd has had its passes."""
        curve, best, last_rise, first_scan = [], 0, 0, side.scans()

        def look():
            nonlocal best, last_rise
            saved, cost = side.saved_pages() / 256, meter.read()
            curve.append([round(cost["wall_s"], 2), round(cost["engine_cpu_s"] + cost["agents_cpu_s"], 3), round(saved, 1)])
            if saved > best * 1.001:
                best, last_rise = saved, cost["wall_s"]
            return cost["wall_s"] - last_rise >= self.quiet_s and side.scans() >= first_scan + 3
        wait_until(look, self.limit_s, f"{side.label}: no more saved", LOOK_SECONDS)
        return curve

    def finish(self, known, curves):
        """Times to 90 % of what kernel KSM saves, which is known only now."""
        enough = 0.9 * known["ksm"]["saved_mib"]
        for side, curve in curves.items():
            reached = time_to(curve, enough)
            if reached is not None:
                known[side]["to90_s"] = reached

    def checks(self, middle):
        return [Check("saved, of what ksmd saves", figure_ratio(middle, "saved_mib"), 0.95, "x", at_least=True),
                Check("time to 90 % of that, of ksmd's at equal CPU", figure_ratio(middle, "to90_s", "userksm", "ksm, equal CPU"), 0.5, "x")]


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
