"""What a service manager does for userksmd, as far as the daemon can tell: passes the listening socket (LISTEN_FDS), hears what it
says ($NOTIFY_SOCKET), keeps fds for it (FDSTORE=1, FDSTOREREMOVE=1) and hands them to its next start. sd_listen_fds(3), sd_notify(3)."""
import os
import select
import signal
import socket
import tempfile
import threading
import time

from harness import BUILD, FAST, Daemon, until

WATCHDOG_USEC = 1_000_000
EXEC_FAILED = 125
FIRST_FD = 3  # SD_LISTEN_FDS_START


class Child:
    """A forked process with the few methods of Popen that a Daemon needs."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds=20):
        until(lambda: self.poll() is not None, seconds, "the daemon ends")
        return self.returncode


class Supervisor(Daemon):
    def __init__(self, *options, kind=socket.SOCK_SEQPACKET, store_max=4096, environment=None):
        directory = tempfile.mkdtemp(prefix="userksm-test-")
        self.listener = socket.socket(socket.AF_UNIX, kind)
        self.listener.bind(directory + "/sock")
        self.listener.listen(64)
        self.notify_path = directory + "/notify"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.notify_path)
        self.store_max = store_max
        self.environment = environment or {}
        self.store = {}  # inode -> (name, fd)
        self.messages = []  # (time, line)
        self.hearing = threading.Lock()
        self.is_leaving = False
        threading.Thread(target=self._hear, daemon=True).start()
        self.directory, self.socket, self.options = directory, directory + "/sock", options
        self.log = open(directory + "/log", "ab")
        self.process = None

    # -- what it hears: a thread reads at all times, or a daemon that talks much would wait for us ---------------------------

    def _hear(self):
        while not self.is_leaving:
            select.select([self.notify], [], [], 0.2)
            with self.hearing:
                self._take_all()

    def _take_all(self):
        while select.select([self.notify], [], [], 0)[0]:
            data, fds, _, _ = socket.recv_fds(self.notify, 4096, 16)
            lines = data.decode().splitlines()
            now = time.monotonic()
            self.messages += [(now, line) for line in lines]
            name = next((x.split("=", 1)[1] for x in lines if x.startswith("FDNAME=")), "stored")
            if "FDSTOREREMOVE=1" in lines:
                for inode in [i for i, (n, _) in self.store.items() if n == name]:
                    os.close(self.store.pop(inode)[1])
            for fd in fds:
                inode = os.fstat(fd).st_ino
                if "FDSTORE=1" in lines and inode not in self.store and len(self.store) < self.store_max:
                    self.store[inode] = (name, fd)
                else:
                    os.close(fd)

    def heard_all(self):
        """Whatever the daemon, perhaps dead by now, has said is known here."""
        with self.hearing:
            self._take_all()

    def times(self, line):
        return [t for t, m in self.messages if m == line]

    def wait_for(self, line, times=1, seconds=20):
        def arrived():
            if len(self.times(line)) >= times:
                return True
            assert self.process.poll() is None, f"the daemon ended before it said {line}: {self.said()}"
            return False
        until(arrived, seconds, f"{line} from the daemon")

    # -- the service -----------------------------------------------------------------------------------------------------------

    def start(self, extra=()):
        """extra: (name, fd) to be passed besides what the store has. READY=1 is not waited for."""
        self.heard_all()
        passed = [("userksm", self.listener.fileno())] + list(self.store.values()) + list(extra)
        pid = os.fork()
        if pid == 0:
            self._exec_daemon(passed)
        self.process = Child(pid)
        return self

    def _exec_daemon(self, passed):
        try:
            os.dup2(self.log.fileno(), 2)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            # Out of the way of the numbers that they are to have.
            high = [os.dup2(fd, 1000 + i) for i, (_, fd) in enumerate(passed)]
            for i, fd in enumerate(high):
                os.dup2(fd, FIRST_FD + i)
                os.set_inheritable(FIRST_FD + i, True)
                os.close(fd)
            os.closerange(FIRST_FD + len(passed), 4096)
            daemon = str(BUILD / "daemon/userksmd")
            environment = {**os.environ, **self.environment, "LISTEN_FDS": str(len(passed)), "LISTEN_PID": str(os.getpid()),
                           "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
                           "NOTIFY_SOCKET": self.notify_path, "WATCHDOG_USEC": str(WATCHDOG_USEC),
                           "WATCHDOG_PID": str(os.getpid())}
            # The path is that of no socket: it must use the one it was given.
            os.execve(daemon, [daemon, "--socket", self.directory + "/not-this-one", *FAST, *self.options], environment)
        finally:
            os._exit(EXEC_FAILED)

    def restart(self, number=signal.SIGKILL, extra=()):
        """Ends the daemon and starts the next one, which is ready on return."""
        self.process.send_signal(number)
        self.process.wait()
        n = len(self.times("READY=1"))
        self.start(extra)
        until(lambda: len(self.times("READY=1")) > n or self.process.poll() is not None, 30, "READY=1")
        assert self.process.poll() is None, f"the daemon did not start again: {self.said()[-4000:]}"

    def __exit__(self, *exc):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if exc[0]:
            print("--- daemon log ---", self.said()[-4000:], sep="\n")
        self.close()

    def close(self):
        """Keeps nothing any more."""
        self.is_leaving = True
        with self.hearing:
            for _, fd in self.store.values():
                os.close(fd)
            self.store.clear()
