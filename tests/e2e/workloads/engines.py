"""The three ways a set of processes runs: without merging, under kernel KSM, under userksm.

An engine is a context manager. Inside it: command() and environment() say how to start a program, start_merging()
begins (programs load unmerged, so that the oracle sees them whole), own_pids() names processes whose memory must be
counted too, summary() gives figures of its own. What it changes on the machine, an engine puts back on exit."""
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from measure import BUILD, Skip, cpu_seconds, spawn, stop, wait_until

KSM = pathlib.Path("/sys/kernel/mm/ksm")


def child_of(parent):
    """The first child of a process, or None."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            return int(stat.parent.name)
    return None


class NoEngine:
    name = "none"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def command(self, argv, merge_any):
        return list(argv)

    def environment(self, merge_any):
        return {}

    def pid_of(self, process, merge_any):
        """The program's pid, given what spawn(command()) returned."""
        return process.pid

    def start_merging(self):
        pass

    def own_pids(self):
        return []

    def settled(self):
        return True

    def summary(self):
        return {}


def ksmd_pid():
    """Of kernel KSM's thread, or None."""
    return next((int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/comm") if p.read_text().strip() == "ksmd"), None)


class KernelKsm(NoEngine):
    """Kernel KSM, fast: every page each pass, no sleep to speak of, zero pages merged.

    Its settings are the machine's, so one user at a time (a lock), and what was found is written down first: were we
    killed outright, the next one puts it back."""
    name = "ksm"
    # Large enough that a pass over a few GiB is one batch.
    SETTINGS = {"pages_to_scan": "1000000", "sleep_millisecs": "20", "use_zero_pages": "1", "smart_scan": "0"}
    PASSES = 3
    LOCK = pathlib.Path("/run/lock/userksm-ksm-settings.json")
    LOCK_SECONDS = 300

    def __enter__(self):
        if not os.access(KSM / "run", os.W_OK):
            raise Skip("kernel KSM cannot be controlled here (not root, or CONFIG_KSM=n)")
        self.lock = open(self.LOCK, "a+")
        wait_until(self._try_lock, self.LOCK_SECONDS, "another comparison with kernel KSM", 0.5)
        self.lock.seek(0)
        left_behind = self.lock.read()
        if left_behind:
            self.saved = json.loads(left_behind)
            self._put_back()
        if (KSM / "run").read_text().strip() == "1":
            self.lock.close()
            raise Skip("kernel KSM is in use on this machine; it is left alone")
        names = [n for n in self.SETTINGS if (KSM / n).exists()]
        self.saved = {n: (KSM / n).read_text().strip() for n in ["run", *names]}
        self.lock.write(json.dumps(self.saved))
        self.lock.flush()
        self.ksmd = ksmd_pid()
        try:
            for n in names:
                (KSM / n).write_text(self.SETTINGS[n])
        except OSError as e:
            self.restore()
            raise Skip(f"kernel KSM does not accept its settings: {e}") from e
        return self

    def _try_lock(self):
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _put_back(self):
        (KSM / "run").write_text("2")  # unmerge what is left, then as it was
        for n, value in self.saved.items():
            if n != "run":
                (KSM / n).write_text(value)
        (KSM / "run").write_text(self.saved["run"])
        self.lock.truncate(0)

    def restore(self):
        try:
            self._put_back()
        finally:
            self.lock.close()

    def __exit__(self, *exception):
        self.restore()

    def command(self, argv, merge_any):
        return [BUILD / "bench/ksmprctl", *argv] if merge_any else list(argv)

    def start_merging(self):
        self.first_pass = int((KSM / "full_scans").read_text())
        self.cpu_before = cpu_seconds(self.ksmd) if self.ksmd else 0.0
        (KSM / "run").write_text("1")

    def settled(self):
        return int((KSM / "full_scans").read_text()) >= self.first_pass + self.PASSES

    def summary(self):
        names = ["pages_shared", "pages_sharing", "ksm_zero_pages", "full_scans"]
        out = {n: int((KSM / n).read_text()) for n in names if (KSM / n).exists()}
        if self.ksmd:
            out["cpu_seconds"] = round(cpu_seconds(self.ksmd) - self.cpu_before, 2)
        return out


class Userksm(NoEngine):
    """A private daemon on a socket of its own. Programs run under `ksmctl run`, or, when they offer their memory by
    themselves, with the shim preloaded."""
    name = "userksm"
    START_SECONDS = 10

    def __init__(self, settings=None):
        self.settings = settings or {}

    def __enter__(self):
        self.daemon_path, self.ctl_path = BUILD / "daemon/userksmd", BUILD / "ctl/ksmctl"
        self.shim = BUILD / "lib/libuserksm-preload.so"
        for path in (self.daemon_path, self.ctl_path, self.shim):
            if not path.exists():
                raise Skip(f"{path} is not built")
        self.directory = tempfile.mkdtemp(prefix="userksm-")
        self.socket = os.path.join(self.directory, "userksm.sock")
        self.log = open(os.path.join(self.directory, "userksmd.log"), "w+")
        argv = [self.daemon_path, f"--socket={self.socket}", "--run=0"]
        argv += [f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items()]
        self.daemon = spawn(argv, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: os.path.exists(self.socket) or self.daemon.poll() is not None, self.START_SECONDS,
                       "userksmd")
            if self.daemon.poll() is not None:
                text = self.read_log().strip()
                if self.daemon.returncode == 69:
                    raise Skip(f"userksmd: {text}")
                raise RuntimeError(f"userksmd ended with status {self.daemon.returncode}: {text}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        stop([self.daemon])
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def read_log(self):
        return pathlib.Path(self.log.name).read_text()

    def command(self, argv, merge_any):
        return [self.ctl_path, f"--socket={self.socket}", "run", "--quiet", "--", *argv] if merge_any else list(argv)

    def environment(self, merge_any):
        return {} if merge_any else {"USERKSM_SOCKET": self.socket, "LD_PRELOAD": str(self.shim)}

    def pid_of(self, process, merge_any):
        return wait_until(lambda: child_of(process.pid), 10, "ksmctl run") if merge_any else process.pid

    def ctl(self, *arguments):
        command = [self.ctl_path, f"--socket={self.socket}", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"ksmctl {' '.join(map(str, arguments))}: {result.stderr.strip()}\n{self.read_log()}")
        return result.stdout

    def start_merging(self):
        self.ctl("set", "run=1")

    def own_pids(self):
        return [self.daemon.pid]

    def stats(self):
        return json.loads(self.ctl("stats", "--json"))["counters"]

    def summary(self):
        stats = self.stats()
        names = ["clients", "pages_shared", "pages_sharing", "ksm_zero_pages", "runs", "vmas_used", "segment_bytes",
                 "dead_bytes", "metadata_bytes", "failed_changed", "failed_pinned_or_forked", "failed_vma_gone",
                 "failed_budget", "failed_error", "agents_cpu_usec", "raw_syscalls"]
        out = {n: stats[n] for n in names if n in stats}
        out["cpu_seconds"] = round(cpu_seconds(self.daemon.pid), 2)
        return out


ENGINES = {e.name: e for e in (NoEngine, KernelKsm, Userksm)}
