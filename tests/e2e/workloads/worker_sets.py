"""12 node and 6 OpenJDK workers: the same table and blob in each, with the programs' own address randomisation."""
import os
import pathlib
import shutil
import subprocess

from measure import Skip, Wrong, spawn, stop

HERE = pathlib.Path(__file__).parent


class WorkerSet:
    """Equal workers that print a checksum of what they hold when they are ready, and again for every line on stdin."""
    merge_any = True
    ranges = "all"
    change = None

    def __init__(self):
        self.processes, self.checksums = [], []

    def start(self, engine):
        self.engine = engine
        argv = self.command()
        for _ in range(self.workers):
            self.processes.append(spawn(engine.command(argv, self.merge_any), engine.environment(self.merge_any), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        self.checksums = self._answers()
        if len(set(self.checksums)) != 1:
            raise Wrong(f"workers disagree from the start: {set(self.checksums)}")

    def _answers(self):
        answers = [p.stdout.readline().strip() for p in self.processes]
        if not all(answers):
            raise Wrong(f"a worker ended early: {[p.poll() for p in self.processes]}")
        return answers

    def pids(self):
        return [self.engine.pid_of(p, self.merge_any) for p in self.processes]

    def verify(self):
        for p in self.processes:
            p.stdin.write("check\n")
            p.stdin.flush()
        again = self._answers()
        if again != self.checksums:
            raise Wrong(f"checksum changed in workers {[n for n, (a, b) in enumerate(zip(again, self.checksums)) if a != b]}")
        return f"{len(again)} checksums unchanged"

    def stop(self):
        stop(self.processes)


class NodeSet(WorkerSet):
    name, workers = "node", 12
    describes = f"{workers} node workers, 40 k records and a blob of 16 MiB each"

    def command(self):
        node = shutil.which("node")
        if not node:
            raise Skip("node is not installed (package nodejs)")
        return [node, HERE / "worker.js"]


class JavaSet(WorkerSet):
    name, workers = "java", 6
    describes = f"{workers} OpenJDK workers, 100 k records and a blob of 16 MiB each, heap of 256 MiB"

    def command(self):
        java = shutil.which("java")
        if not java:
            raise Skip("java is not installed (package openjdk-17-jdk-headless)")
        # A file of source: compiled in memory at the start. Twins of a service have equal options, which is all that they have here.
        return [os.path.realpath(java), "-Xmx256m", "-XX:+UseSerialGC", HERE / "Worker.java"]
