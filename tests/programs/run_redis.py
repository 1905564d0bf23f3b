#!/usr/bin/python3
"""redis-server under an aggressive scan while redis-benchmark loads it: what a client of our own wrote reads back equal, and
the whole data set has the same digest after a save by a forked child and a reload.

usage: run_redis.py [--rounds N]"""
import argparse
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e/workloads"), str(HERE)]
from engines import Userksm  # noqa: E402
from fast import FAST, report  # noqa: E402
from measure import Wrong  # noqa: E402
from redis_set import RedisSet  # noqa: E402

SERVERS = 3
KEYS = 20_000
ROUNDS = 3
BENCHMARK_SECONDS = 600  # ten, where nothing else runs
# In a database beside ours. Lists, sets, hashes and strings over keys of 700 bytes, written, read and removed.
MIX = ["--dbnum", "1", "-t", "set,get,incr,lpush,rpush,lpop,sadd,hset,spop,zadd,mset", "-n", "20000", "-r", "20000", "-d", "700",
       "-P", "8", "-c", "20", "-q"]


class Mixed(RedisSet):
    options = ("--enable-debug-command", "local")

    def paths(self):
        return [c.socket.getpeername() for c in self.connections]

    def ask(self, n, *words):
        """One command with an answer of one line."""
        connection = self.connections[n].socket
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += connection.recv(65536)
        if answer.startswith(b"-"):
            raise Wrong(f"server {n}: {b' '.join(words).decode()}: {answer.decode().strip()}")
        return answer.strip()

    def reload(self):
        for n in range(self.n_servers):
            before = self.ask(n, b"DEBUG", b"DIGEST")
            self.ask(n, b"DEBUG", b"RELOAD")
            after = self.ask(n, b"DEBUG", b"DIGEST")
            if before != after:
                raise Wrong(f"server {n}: digest {before} before reloading, {after} after")

    def load(self):
        """All servers at once; returns when all have ended."""
        running = [subprocess.Popen(["redis-benchmark", "-s", path, *MIX], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for path in self.paths()]
        try:
            for n, process in enumerate(running):
                out, _ = process.communicate(timeout=BENCHMARK_SECONDS)
                if process.returncode or "error" in out.lower():
                    raise Wrong(f"redis-benchmark on server {n} ended with status {process.returncode}: {out[-1000:]}")
        finally:
            for process in running:  # or it would try to connect for ever
                process.kill()
                process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if not shutil.which("redis-benchmark"):
        print("SKIP: redis-benchmark is not installed (package redis-tools)")
        return 77
    servers = Mixed(KEYS, SERVERS)
    with Userksm(FAST) as engine:
        engine.start_merging()
        try:
            servers.start(engine)
            for _ in range(arguments.rounds):
                servers.load()
                servers.verify()
                servers.change()
                servers.reload()
                servers.verify()
        finally:
            servers.stop()
        return report(engine, f"{arguments.rounds} rounds of redis-benchmark on {SERVERS} servers, all keys read back equal, "
                              "digests equal")


sys.exit(main())
