#!/usr/bin/env python3
"""Forking servers: a pre-forking C program and python's multiprocessing. Parent and children compute right, and the children,
who write their memory anew after the fork, are merged too."""
import os
import sys

from harness import BUILD, Daemon, until
from test_shim_support import finish, merged_pages, spawn

WORKERS = 3
# A quarter of the table of 1024 pages is rewritten by each worker, equally; the rest is shared by fork itself.
REWRITTEN = 256

PYTHON = """
import hashlib, multiprocessing, os, sys
blob = bytearray(os.urandom(64) * 65536)      # 4 MiB that repeats
def work(n):
    table = {i: ("value %d " % i) * 20 for i in range(20000)}
    again = bytearray(blob)
    for i in range(0, len(again), 4096):
        again[i] = i >> 12 & 255
    digest = hashlib.sha256(again).hexdigest()
    for k in range(5):
        multiprocessing.current_process()
        if hashlib.sha256(again).hexdigest() != digest or any(not v.startswith("value %d " % i) for i, v in table.items()):
            return "wrong"
        import time; time.sleep(0.2)
    return digest
if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    before = hashlib.sha256(blob).hexdigest()
    with multiprocessing.Pool(3) as pool:
        results = pool.map(work, range(6))
    assert len(set(results)) == 1 and results[0] != "wrong", results
    assert hashlib.sha256(blob).hexdigest() == before
    print("right")
"""


def c_server(daemon):
    server = spawn([BUILD / "tests/e2e/test_shim_fork", WORKERS], daemon.socket, USERKSM_MERGE_ANY="1")

    def tell(word):
        server.stdin.write(word + "\n")
        server.stdin.flush()
        line = server.stdout.readline()
        assert line, server.stderr.read()
        return line.split()

    try:
        parent = int(server.stdout.readline().split()[1])
        until(lambda: merged_pages(parent) > 512, 30, "the parent is merged before it forks")
        workers = [int(pid) for pid in tell("fork")[1:]]
        for _ in range(3):
            tell("w")
            for pid in workers:
                until(lambda: merged_pages(pid) > REWRITTEN, 30, f"worker {pid} is merged")
            tell("c")
    finally:
        out = finish(server, 30, "the pre-forking server")
    assert out.endswith("right\n"), out
    print(f"C server: {WORKERS} workers merged and right")


def python_pool(daemon):
    merges = daemon.stats()["merges"]
    program = spawn([sys.executable, "-c", PYTHON], daemon.socket, USERKSM_MERGE_ANY="1")
    assert finish(program, 120, "python multiprocessing").endswith("right\n")
    merged = daemon.stats()["merges"] - merges
    assert merged > 1000, f"only {merged} pages merged"
    print(f"python multiprocessing: right, {merged} pages merged")


with Daemon() as daemon:
    c_server(daemon)
    python_pool(daemon)
