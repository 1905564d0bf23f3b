"""What end-to-end tests share: a daemon of their own on a private socket, victims, and what the kernel says about them.

Every wait is for a condition and has a bound. Everything started is ended by pid."""
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time

BUILD = pathlib.Path(os.environ.get("USERKSM_BUILD") or sys.argv[1]).resolve()
PRESENT = 1 << 63  # of a pagemap entry
# Whatever the rest of the machine does: the governor has a test of its own.
EVEN = ["--idle_cpu_permille=1000", "--pressure_permille=0", "--low_memory_permille=0"]
FAST = ["--pass_millisecs=10", "--settle_millisecs=20", "--sleep_millisecs=1", *EVEN]


def skip(reason):
    print(f"SKIP: {reason}")
    sys.exit(77)


def until(condition, seconds=30, what="condition"):
    """Polls until condition() is true; its last value is returned. A bound that passes is a failure that names it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def rollup(pid, key="Pss"):
    """KiB of a line of smaps_rollup."""
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def frames(victim, name, n):
    """Page frame number of each page of a victim's area, 0 for none. Root only."""
    address = int(victim.do("address", name).split()[1])
    with open(f"/proc/{victim.pid}/pagemap", "rb") as f:
        f.seek(address // 4096 * 8)
        entries = struct.unpack(f"<{n}Q", f.read(n * 8))
    return [e & ((1 << 55) - 1) if e >> 63 else 0 for e in entries]


class Daemon:
    def __init__(self, *options):
        self.directory = tempfile.mkdtemp(prefix="userksm-test-")
        self.socket = f"{self.directory}/sock"
        self.options = options
        self.log = open(f"{self.directory}/log", "ab")
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen([BUILD / "daemon/userksmd", "--socket", self.socket, *FAST, *self.options],
                                        stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        until(lambda: self.process.poll() is not None or self.answers(), 10, "the daemon answers")
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended at once: {self.said()}")

    def said(self):
        return open(f"{self.directory}/log").read()

    def ctl(self, *args, check=True):
        return subprocess.run([BUILD / "ctl/ksmctl", "--socket", self.socket, *args], check=check,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

    def answers(self):
        return self.ctl("stats", "--json", check=False).returncode == 0

    def stats(self):
        return json.loads(self.ctl("stats", "--json").stdout)["counters"]

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            status = self.process.wait(20)
            assert number != signal.SIGTERM or status == 0, f"the daemon ended with status {status}: {self.said()[-4000:]}"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()
        if exc[0]:
            print("--- daemon log ---", self.said()[-4000:], sep="\n")


class Victim:
    def __init__(self, daemon_or_path, user=None, group=None, **env):
        path = getattr(daemon_or_path, "socket", daemon_or_path)
        self.process = subprocess.Popen([BUILD / "tests/e2e/victim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, env={**os.environ, "USERKSM_SOCKET": path, **env},
                                        user=user, group=group, extra_groups=None if user is None else [])
        assert self.process.stdout.readline() == "ok\n"

    @property
    def pid(self):
        return self.process.pid

    def say(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        line = self.process.stdout.readline()
        assert line, f"the victim died at {words}: {self.process.wait()}"
        return line.strip()

    def do(self, *words):
        answer = self.say(*words)
        assert answer.split()[0] == "ok", f"{words}: {answer}"
        return answer

    def connected(self):
        return self.say("stats").split()[2] == "1"

    def pss(self):
        return rollup(self.pid)

    def quit(self):
        if self.process.poll() is None:
            self.process.stdin.write("quit\n")
            assert self.process.wait(20) == 0

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)


class Groups:
    """Where groups with a memory limit can be made here, and what the files are called. A limit that was ever met was met too often."""
    ONE = pathlib.Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.swappiness"
    TWO = pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"

    def __init__(self):
        self.directory = None
        for top, limit, swap in (self.ONE, self.TWO):
            control = top / "cgroup.subtree_control"
            if os.access(top / "cgroup.procs", os.W_OK) and (top == self.ONE[0] or "memory" in control.read_text().split()):
                self.directory, self.limit, self.swap = top / f"userksm-test-{os.getpid()}", limit, swap
                return

    def make(self, limit_bytes):
        """The limit is the outer group's; processes are put into the inner one."""
        self.inner = self.directory / "inner"
        self.inner.mkdir(parents=True)
        self.set_limit(limit_bytes)
        (self.directory / self.swap).write_text("0")

    def set_limit(self, n):
        (self.directory / self.limit).write_text(str(n))

    def times_met(self):
        if self.limit == self.ONE[1]:
            return int((self.directory / "memory.failcnt").read_text())
        return sum(int(line.split()[1]) for line in open(self.directory / "memory.events") if line.startswith(("max ", "oom ")))

    def remove(self):
        until(lambda: not (self.inner / "cgroup.procs").read_text(), 20, "the group is empty")
        self.inner.rmdir()
        self.directory.rmdir()


def n_maps(pid):
    with open(f"/proc/{pid}/maps", "rb") as f:
        return f.read().count(b"\n")


def same(daemon, n, pages, **how):
    """n victims whose memory is the same."""
    victims = []
    for _ in range(n):
        v = Victim(daemon, **how)
        v.do("map", "m", pages)
        v.do("fill", "m", 0, pages, 1000)
        until(v.connected, 10, "connected")
        victims.append(v)
    return victims


def has(daemon, what="counters", **want):
    def look():
        s = daemon.stats()
        return s if all(s[k] == v for k, v in want.items()) else None
    try:
        return until(look, 30, what)
    except AssertionError:
        s = daemon.stats()
        raise AssertionError(f"{what}: wanted {want}, is { {k: s[k] for k in want} }")


def run(*tests):
    """Runs each test, prints one line for it, exits 1 if any failed."""
    failed = 0
    for test in tests:
        started = time.monotonic()
        try:
            test()
            print(f"ok   {test.__name__} ({time.monotonic() - started:.1f} s)", flush=True)
        except AssertionError as e:
            failed += 1
            print(f"FAIL {test.__name__}: {e}", flush=True)
    sys.exit(1 if failed else 0)
