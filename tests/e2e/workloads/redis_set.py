"""8 redis-server with the same keys, each on a Unix socket of its own, nothing written to disk.

Values are a function of the key and a generation, so every byte read back is checked against what it must be. The
client is a few lines of pipelined RESP: reading 800 MiB back takes seconds."""
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile

from measure import Skip, Wrong, spawn, stop, wait_until

SERVERS = 8
KEYS = 100_000
VALUE_BYTES = 1024
CHUNK_KEYS = 500
REWRITE_OF_TEN = 3


def value(index, generation):
    return hashlib.shake_128(b"%d/%d" % (index, generation)).hexdigest(VALUE_BYTES // 2).encode()


def key(index):
    return b"key:%08d" % index


class Connection:
    """One server. exchange() sends a pipeline and requires exactly the expected answer."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(120)

    def exchange(self, request, expected, what):
        self.socket.sendall(request)
        answer = bytearray(len(expected))
        view, got = memoryview(answer), 0
        while got < len(expected):
            n = self.socket.recv_into(view[got:])
            if n == 0:
                raise Wrong(f"{what}: connection closed")
            got += n
        if answer != expected:
            at = next(i for i in range(len(expected)) if answer[i] != expected[i])
            raise Wrong(f"{what}: answer differs at byte {at} of {len(expected)}: {bytes(answer[at:at + 32])!r}")

    def close(self):
        self.socket.close()


class RedisSet:
    name = "redis"
    merge_any = True
    ranges = "all"
    describes = f"{SERVERS} redis-server, {KEYS // 1000} k keys of {VALUE_BYTES} bytes each"
    options = ()

    def __init__(self, keys=KEYS, servers=SERVERS):
        self.n_keys, self.n_servers = keys, servers
        self.processes, self.connections = [], []
        self.generation = {}

    def start(self, engine):
        self.engine = engine
        self.directory = tempfile.mkdtemp(prefix="userksm-redis-")
        redis = self._program()
        paths = [os.path.join(self.directory, f"{n}.sock") for n in range(self.n_servers)]
        for n, path in enumerate(paths):
            argv = [redis, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--daemonize", "no",
                    "--dir", self.directory, "--logfile", os.path.join(self.directory, f"{n}.log"), *self.options]
            self.processes.append(spawn(engine.command(argv, self.merge_any), engine.environment(self.merge_any),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for path, process in zip(paths, self.processes):
            self.connections.append(wait_until(lambda: self._connect(path, process), 30, path))
        self._write(range(self.n_keys), 0)

    def _program(self):
        """redis-server, or, from redis-tools alone (the package without the service), the same program by its other
        name: it decides by argv[0] what it is."""
        redis = shutil.which("redis-server")
        if redis:
            return redis
        same = shutil.which("redis-check-rdb")
        if not same:
            raise Skip("redis-server is not installed")
        link = os.path.join(self.directory, "redis-server")
        os.symlink(same, link)
        return link

    def _connect(self, path, process):
        if process.poll() is not None:
            raise Wrong(f"redis-server ended with status {process.returncode}: see {path}")
        try:
            return Connection(path)
        except OSError:
            return None

    def pids(self):
        return [self.engine.pid_of(p, self.merge_any) for p in self.processes]

    def _write(self, indexes, generation):
        indexes = list(indexes)
        for at in range(0, len(indexes), CHUNK_KEYS):
            chunk = indexes[at:at + CHUNK_KEYS]
            request = b"".join(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" %
                               (len(key(i)), key(i), VALUE_BYTES, value(i, generation)) for i in chunk)
            for n, c in enumerate(self.connections):
                c.exchange(request, b"+OK\r\n" * len(chunk), f"server {n}, write from key {chunk[0]}")
        for i in indexes:
            self.generation[i] = generation

    def verify(self):
        """Reads every key of every server back."""
        for first in range(0, self.n_keys, CHUNK_KEYS):
            chunk = range(first, min(first + CHUNK_KEYS, self.n_keys))
            request = b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key(i)), key(i)) for i in chunk)
            expected = b"".join(b"$%d\r\n%s\r\n" % (VALUE_BYTES, value(i, self.generation[i])) for i in chunk)
            for n, c in enumerate(self.connections):
                c.exchange(request, expected, f"server {n}, keys from {first}")
        for n, c in enumerate(self.connections):
            c.exchange(b"*1\r\n$6\r\nDBSIZE\r\n", b":%d\r\n" % self.n_keys, f"server {n}, number of keys")
        return f"{self.n_keys * self.n_servers} keys read back equal"

    def change(self):
        """New values for 30 % of the keys."""
        indexes = [i for i in range(self.n_keys) if i % 10 < REWRITE_OF_TEN]
        self._write(indexes, max(self.generation.values()) + 1)
        return f"{len(indexes) * self.n_servers} keys rewritten"

    def stop(self):
        for c in self.connections:
            c.close()
        stop(self.processes)
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory, ignore_errors=True)
