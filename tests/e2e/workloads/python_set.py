"""12 python3 workers of the standard library: the same table and blob in each. With address randomisation every page
that holds a pointer differs; without it (setarch -R, PYTHONHASHSEED=0) nearly all are equal."""
import os
import pathlib
import shutil
import subprocess

from measure import Skip, Wrong, spawn, stop

WORKERS = 12
PYTHON = "/usr/bin/python3"
WORKER = pathlib.Path(__file__).with_name("python_worker.py")


class PythonSet:
    name = "python"
    merge_any = True
    ranges = "all"
    describes = f"{WORKERS} python3 workers, 60 k records and a blob of 16 MiB each"
    prefix, extra = [], {}

    def __init__(self):
        self.processes, self.digests = [], []

    def start(self, engine):
        self.engine = engine
        if not os.path.exists(PYTHON):
            raise Skip(f"{PYTHON} is not installed")
        argv = [*self.prefix, PYTHON, "-S", str(WORKER)]
        for _ in range(WORKERS):
            environment = {**engine.environment(self.merge_any), **self.extra}
            self.processes.append(spawn(engine.command(argv, self.merge_any), environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        self.digests = self._answers()
        if len(set(self.digests)) != 1:
            raise Wrong(f"workers disagree from the start: {set(self.digests)}")

    def _answers(self):
        answers = [p.stdout.readline().strip() for p in self.processes]
        if not all(len(a) == 64 for a in answers):
            raise Wrong(f"a worker ended early: {[p.poll() for p in self.processes]}")
        return answers

    def pids(self):
        return [self.engine.pid_of(p, self.merge_any) for p in self.processes]

    def verify(self):
        for p in self.processes:
            p.stdin.write("check\n")
            p.stdin.flush()
        again = self._answers()
        if again != self.digests:
            bad = [n for n, (a, b) in enumerate(zip(again, self.digests)) if a != b]
            raise Wrong(f"checksum changed in workers {bad}")
        return f"{len(again)} checksums unchanged"

    change = None

    def stop(self):
        stop(self.processes)


class PythonNoAslrSet(PythonSet):
    name = "python-noaslr"
    describes = PythonSet.describes + ", setarch -R, PYTHONHASHSEED=0"
    prefix, extra = ["setarch", "-R"], {"PYTHONHASHSEED": "0"}

    def start(self, engine):
        if not shutil.which("setarch"):
            raise Skip("setarch is not installed")
        super().start(engine)
