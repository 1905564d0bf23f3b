"""systemd and userksm's own tools as the cases use them, and redis servers as clients whose every byte is known."""
import functools
import json
import pathlib
import random
import socket
import subprocess
import time

SERVICE, SOCKET = "userksmd.service", "userksmd.socket"
UNITS = pathlib.Path("/etc/systemd/system")
# Of everything that is waited for: emulated, on a machine that others keep busy, seconds become minutes.
BOUND_SECONDS = 240
# With redis' header and the final NUL of a string this is 8192 bytes, which its allocator puts at the beginning of a page; larger
# ones it puts at a random offset, so that no two servers have equal pages.
VALUE_BYTES = 8186
VALUES = 1024
DATA_BYTES = VALUES * 8192
# In one request: a server's answer is memory of its own, little beside the data.
CHUNK_VALUES = 32


class Skipped(Exception):
    pass


def sh(*command, check=True):
    r = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True, timeout=BOUND_SECONDS)
    assert not check or r.returncode == 0, f"{command}: exit status {r.returncode}: {r.stdout}"
    return r.stdout if check else r


def until(condition, what):
    end = time.monotonic() + BOUND_SECONDS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {BOUND_SECONDS} s: {what}"
        time.sleep(0.1)


def prop(unit, name):
    return sh("systemctl", "show", "-P", name, unit).strip()


def active(unit):
    return prop(unit, "ActiveState") == "active"


def main_pid(unit=SERVICE):
    return int(prop(unit, "MainPID"))


def drop_in(unit, text):
    directory = UNITS / f"{unit}.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "test.conf").write_text(text)
    sh("systemctl", "daemon-reload")


def ctl(*arguments, check=True):
    return sh("ksmctl", *arguments, check=check)


def stats():
    return json.loads(ctl("stats", "--json"))["counters"]


def processes():
    """pid -> what `ksmctl status` says of it."""
    return {p["pid"]: p for p in json.loads(ctl("status", "--json"))["processes"]}


def rollup_bytes(pids, name="Pss"):
    """Of all of the processes; 0 for one that is gone."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                total += sum(int(line.split()[1]) << 10 for line in f if line.startswith(name + ":"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


@functools.cache
def chunks(seed):
    r = random.Random(seed)
    values = [(i, r.randbytes(VALUE_BYTES)) for i in range(VALUES)]
    return [values[i:i + CHUNK_VALUES] for i in range(0, VALUES, CHUNK_VALUES)]


class Redis:
    """An instance of a unit with a redis-server that listens on a Unix socket only."""

    def __init__(self, unit, instance, start=True):
        self.unit = f"{unit}@{instance}.service" if instance else f"{unit}.service"
        self.directory = f"/run/redis-{instance or unit}"
        self.path = self.directory + "/redis-server.sock"
        config = pathlib.Path(f"/etc/redis/redis-{instance or unit}.conf")
        config.write_text(f"port 0\nunixsocket {self.path}\ndir {self.directory}\nsave \"\"\nappendonly no\nlogfile /dev/null\n")
        if start:
            sh("systemctl", "start", self.unit)

    @property
    def pid(self):
        return main_pid(self.unit)

    def exchange(self, requests_and_answers):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(BOUND_SECONDS)
            s.connect(self.path)
            for request, expected in requests_and_answers:
                s.sendall(request)
                answer = bytearray()
                while len(answer) < len(expected):
                    more = s.recv(1 << 20)
                    assert more, f"{self.unit}: connection closed after {bytes(answer[:80])}"
                    answer += more
                assert answer == expected, f"{self.unit}: the data differ"

    def fill(self, seed=1):
        self.exchange((b"".join(b"*3\r\n$3\r\nSET\r\n$4\r\n%04d\r\n$%d\r\n%s\r\n" % (i, VALUE_BYTES, v) for i, v in chunk),
                       b"+OK\r\n" * len(chunk)) for chunk in chunks(seed))

    def check(self, seed=1):
        """Every byte is what was written."""
        self.exchange((b"".join(b"*2\r\n$3\r\nGET\r\n$4\r\n%04d\r\n" % i for i, v in chunk),
                       b"".join(b"$%d\r\n%s\r\n" % (VALUE_BYTES, v) for i, v in chunk)) for chunk in chunks(seed))

    def merged_bytes(self):
        return processes().get(self.pid, {}).get("merged_bytes", 0)

    def domain(self):
        return processes()[self.pid]["domain"]
