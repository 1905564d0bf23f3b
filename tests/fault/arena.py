"""What the fault tests share: the page through which fault points are ordered (common/fault.h), and an arena: a daemon and some
clients (tests/fault/client.c) that merge, write and check all the time."""
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

E2E = pathlib.Path(__file__).resolve().parents[1] / "e2e"
BUILD = pathlib.Path(os.environ.get("USERKSM_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build")).resolve()
os.environ["USERKSM_BUILD"] = str(BUILD)
sys.path.insert(0, str(E2E))
from supervisor import Supervisor  # noqa: E402

GRACE = "--adopt-grace-millisecs=1500"
OPTIONS = ("--pass-millisecs=250", "--settle-millisecs=100", "--sleep-millisecs=1", "--log-level=debug",
           "--idle-cpu-permille=1000", "--pressure-permille=0", "--low-memory-permille=0")
STEADY, TURN = 128, 128  # pages, of client.c
BOUND = 30  # seconds that anything may take on a busy machine, but for what has a bound of its own
ACTIONS = {"count": 0, "kill": 1, "stop": 2, "delay": 3, "random": 4, "fail": 5, "fail-on": 6}
ANY_CALL = 0xFFFFFFFF


class Failure(Exception):
    pass


class Waited(Failure):
    """Somebody waited too long: for us, or for whom the machine gave no processor while he held a lock of the kernel."""


def until(condition, what, seconds=BOUND, pause=0.01):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(pause)


def table():
    """[(side, name, text)] and the size of the page."""
    lines = subprocess.run([BUILD / "tests/fault/list"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [tuple(line.split(" ", 2)) for line in lines[1:]], int(lines[0])


class Shared:
    """A file that other processes map too."""

    def __init__(self, path, size):
        self.path = path
        with open(path, "wb") as f:
            f.truncate((size + 4095) & ~4095)
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 0)

    def u32(self, at):
        return struct.unpack_from("=I", self.map, at)[0]

    def u64(self, at):
        return struct.unpack_from("=Q", self.map, at)[0]

    def put32(self, at, value):
        struct.pack_into("=I", self.map, at, value)

    def put64(self, at, value):
        struct.pack_into("=Q", self.map, at, value)


class FaultPage(Shared):
    ORDER, ACTION, PID, LEFT, VALUE, FIRED, FIRED_PID, FIRED_ID, REACHED = 0, 4, 8, 12, 16, 20, 24, 28, 32

    def __init__(self, path):
        self.rows, size = table()
        self.ids = {name: i for i, (_, name, _) in enumerate(self.rows)}
        super().__init__(path, size)

    def order(self, name, action, nth=1, value=0, pid=0):
        self.put32(self.ORDER, 0)
        for at, v in ((self.ACTION, ACTIONS[action]), (self.PID, pid), (self.LEFT, nth), (self.VALUE, value), (self.FIRED, 0),
                      (self.FIRED_PID, 0), (self.FIRED_ID, 0)):
            self.put32(at, v)
        self.put32(self.ORDER, ANY_CALL if name == "call" else self.ids[name] + 1)

    def cancel(self):
        self.put32(self.ORDER, 0)

    def fired(self):
        return self.u32(self.FIRED)

    def fired_pid(self):
        return self.u32(self.FIRED_PID)

    def fired_name(self):
        i = self.u32(self.FIRED_ID)
        return self.rows[i - 1][1] if i else None

    def reached(self, name):
        return self.u64(self.REACHED + 8 * self.ids[name])


class Board(Shared):
    """struct board of client.c."""
    FIELDS = ("pid", "rounds", "wrong", "wrong_at", "longest_usec", "call_usec", "turn_done", "merged", "connected", "forks", "merges",
              "churn_calm", "guest_calm", "steady_at", "call_name")

    def __init__(self, path):
        super().__init__(path, 64 + 8 * 128)

    def at(self, index, field):
        return 64 + index * 128 + 8 * self.FIELDS.index(field)

    def get(self, index, field):
        return self.u64(self.at(index, field))

    def name_of(self, index, field):
        return self.map[self.at(index, field):self.at(index, field) + 8].rstrip(b"\0").decode()

    def clear(self, index, *fields):
        for field in fields:
            self.put64(self.at(index, field), 0)


def state_of(pid):
    """'T' stopped, 'Z' zombie ...; '' when there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""


def parent_of(pid):
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def has_stopped(pid):
    """Its threads stand still, or it is gone. One that waits in the kernel for a stopped agent stops when it comes out."""
    states = [state_of(f"{pid}/task/{task.name}") for task in pathlib.Path(f"/proc/{pid}/task").glob("*")]
    return all(s in ("T", "Z", "D", "") for s in states) and (not states or set(states) & {"T", "Z"})


def describe(pid):
    """What its threads do."""
    said = []
    for task in sorted(pathlib.Path(f"/proc/{pid}/task").glob("*")):
        try:
            said.append(f"{task.name} {state_of(f'{pid}/task/{task.name}')} {(task / 'comm').read_text().strip()} "
                        f"{(task / 'wchan').read_text()} {(task / 'syscall').read_text().split()[0]}")
        except OSError as e:
            said.append(str(e))
    return "; ".join(said)


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def processes():
    return [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]


def segments_of(pid):
    """{inode} of the segments that the process maps, or holds open in any descriptor table that it has (the agent's is its own)."""
    inodes = set()
    try:
        for line in open(f"/proc/{pid}/maps"):
            if "/memfd:userksm" in line:
                inodes.add(int(line.split()[4]))
    except OSError:
        pass
    for fd in pathlib.Path(f"/proc/{pid}/task").glob("*/fd/*"):
        try:
            if os.readlink(fd).startswith("/memfd:userksm"):
                inodes.add(os.stat(fd).st_ino)
        except OSError:
            pass
    return inodes


class Arena:
    def __init__(self, n_clients=3, options=(), daemon_env=None, client_env=None, supervised=False):
        """supervised: with a service manager, which keeps the segments for the next daemon."""
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="userksm-fault-"))
        self.socket = self.directory / "sock"
        self.faults = FaultPage(self.directory / "faults")
        self.board = Board(self.directory / "board")
        self.options = (*OPTIONS, *options)
        self.daemon_env = daemon_env or {}
        self.client_env = client_env or {}
        self.log = open(self.directory / "log", "ab")
        self.daemon = None
        self.turn = 0
        self.clients = [None] * n_clients
        self.worst_usec, self.worst_what = 0, ""
        self.segments = set()
        self.manager = None
        if supervised:
            self.manager = Supervisor(*self.options, GRACE, environment=self.environment(**self.daemon_env))
            self.manager.log.close()
            self.manager.log, self.socket = self.log, pathlib.Path(self.manager.socket)
        self.start_daemon()
        for i in range(n_clients):
            self.start_client(i)

    # -- processes

    def environment(self, **env):
        return {**os.environ, "USERKSM_FAULT": str(self.faults.path), **env}

    def spawn(self, argv, **env):
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=self.environment(**env))

    def spawn_daemon(self):
        if self.manager:
            self.daemon = self.manager.start().process
            return
        self.daemon = self.spawn([BUILD / "daemon/userksmd", "--socket", self.socket, *self.options], **self.daemon_env)

    def start_daemon(self):
        self.spawn_daemon()
        until(lambda: self.daemon.poll() is not None or self.answers(), "the daemon answers")
        if self.daemon.poll() is not None:
            raise Failure(f"the daemon ended at once, status {self.daemon.returncode}")

    def start_client(self, i):
        self.board.clear(i, *Board.FIELDS)
        self.board.put64(self.board.at(i, "turn_done"), 1 << 63)
        self.clients[i] = self.spawn([BUILD / "tests/fault/client", self.board.path, str(i)], USERKSM_SOCKET=str(self.socket),
                                     **self.client_env)

    def ctl(self, *arguments, seconds=BOUND):
        return subprocess.run([BUILD / "ctl/ksmctl", "--socket", self.socket, *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=seconds)

    def answers(self):
        return self.ctl("stats", "--json").returncode == 0

    def counters(self):
        r = self.ctl("stats", "--json")
        if r.returncode:
            raise Failure(f"ksmctl stats: {r.stdout.strip()}")
        return json.loads(r.stdout)["counters"]

    def end_daemon(self, number):
        if self.daemon.poll() is None:
            self.daemon.send_signal(number)
        try:
            return self.daemon.wait(BOUND)
        except (subprocess.TimeoutExpired, AssertionError):
            raise Failure("the daemon does not end")

    # -- judging

    def check_bytes(self):
        for i, client in enumerate(self.clients):
            if self.board.get(i, "wrong"):
                raise Failure(f"client {i} (pid {client.pid}) found WRONG BYTES at {self.board.get(i, 'wrong_at'):#x}, or a call that failed")

    def forgive(self, i):
        """The fault's own victim may have waited."""
        self.board.clear(i, "longest_usec", "call_usec")

    def longest_usec(self, excepted=(), fields=("longest_usec", "call_usec")):
        return max((self.board.get(i, field) for i in range(len(self.clients)) if i not in excepted for field in fields), default=0)

    def check_waits(self, excepted=(), bound_usec=1000000):
        worst = self.longest_usec(excepted)
        if worst > self.worst_usec:
            self.worst_usec = worst
            calls = {self.board.get(i, "call_usec"): self.board.name_of(i, "call_name") for i in range(len(self.clients))}
            self.worst_what = calls.get(worst, "an access")
        if worst > bound_usec:
            waits = [(self.board.get(i, "longest_usec"), self.board.get(i, "call_usec")) for i in range(len(self.clients))]
            raise Waited(f"somebody waited {worst} us (longest access, call of each client: {waits})")

    def check_lives(self):
        for i, client in enumerate(self.clients):
            if client.poll() is not None:
                raise Failure(f"client {i} (pid {client.pid}) ended with status {client.returncode}")
        if self.daemon.poll() is not None:
            raise Failure(f"the daemon ended with status {self.daemon.returncode}")

    def each(self, field):
        return [self.board.get(i, field) for i in range(len(self.clients))]

    def alive(self):
        self.check_lives()
        self.check_bytes()
        return True

    def next_turn(self):
        """Every client writes new common content."""
        self.turn += 1
        self.board.put64(0, self.turn)

    def calm(self, calm):
        """Forks, discards and merges on demand rest, or go on."""
        self.board.put64(16, calm)
        if not calm:
            return
        try:
            until(lambda: self.alive() and all(self.each("churn_calm") + self.each("guest_calm")), "all clients are calm")
        except Failure as e:
            families = {p for p in processes() for c in self.clients if c.pid in (p, parent_of(p))}
            raise Failure("\n".join([f"{e}; churn {self.each('churn_calm')}, guest {self.each('guest_calm')}", *(describe(p) for p in families)]))

    def linger(self, usec):
        """Forked children live on for so long."""
        self.board.put64(24, usec)

    def converge(self, steady):
        self.calm(True)
        try:
            return self.converge_calm(steady)
        finally:
            self.calm(False)

    def converge_calm(self, steady):
        """New common content is merged everywhere, and in the clients `steady` what they had. Returns the passes that it took, from
        when all had written it."""
        until(lambda: self.alive() and all(self.each("connected")), "all clients are connected")
        self.next_turn()
        until(lambda: self.alive() and all(t == self.turn for t in self.each("turn_done")), "all clients have written")
        before = self.counters()["full_scans"]

        self.await_merged("turn", lambda: all(m & 0xFFFFFFFF == TURN for m in self.each("merged")))
        passes = self.counters()["full_scans"] - before
        # Not counted: a segment may just have been cleaned, its pages wait for a place elsewhere.
        self.await_merged("steady", lambda: all(self.board.get(i, "merged") >> 32 == STEADY for i in steady))
        return passes

    def await_merged(self, what, condition):
        try:
            until(lambda: self.alive() and condition(), "merged", pause=0.02)
        except Failure as e:
            if not str(e).startswith("not within"):
                raise
            counts = [(m >> 32, m & 0xFFFFFFFF) for m in self.each("merged")]
            raise Failure(f"{what} not merged again: {counts} of {STEADY, TURN} pages; {self.counters()}")

    # -- end

    def note_segments(self):
        for process in (self.daemon, *self.clients):
            self.segments |= segments_of(process.pid)
        if self.manager:
            self.segments |= set(self.manager.store)

    def leave(self):
        """All clients leave. No segment that was ever seen may then be mapped or open anywhere: the kernel has its memory back."""
        self.note_segments()
        for client in self.clients:
            client.kill()
            client.wait()
        self.clients = []
        until(lambda: not self.manager or not self.manager.store, "the service manager keeps nothing")
        until(lambda: not segments_of(self.daemon.pid), "the daemon lets go of all segments")
        until(lambda: not self.holders(), f"nobody holds one of {len(self.segments)} segments")
        until(lambda: self.counters()["pages_shared"] == 0, "no shared page is left in the books")

    def holders(self):
        return [pid for pid in processes() if segments_of(pid) & self.segments]

    def close(self):
        for client in self.clients:
            if client and client.poll() is None:
                client.kill()
                client.wait()
        if self.daemon and self.daemon.poll() is None:
            send(self.daemon.pid, signal.SIGCONT)
            self.daemon.kill()
            self.daemon.wait()
        if self.manager:
            self.manager.close()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def said(self, n=3000):
        return (self.directory / "log").read_text(errors="replace")[-n:]
