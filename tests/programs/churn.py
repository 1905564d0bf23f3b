"""Churn with checksums in CPython: sqlite3 in memory and in a file, forks, mappings, threads. Equal arguments print equal lines."""
import hashlib
import mmap
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import threading


def database(seed, rounds, path):
    r = random.Random(seed)
    lines = []
    base = sqlite3.connect(path)
    base.execute("create table t (k integer primary key, v blob)")
    for n in range(rounds):
        with base:
            for _ in range(400):
                base.execute("insert or replace into t values (?, ?)",
                             (r.randrange(3000), bytes([r.randrange(3)]) * r.randrange(9000)))
            base.execute("delete from t where k % 7 = ?", (n % 7,))
        digest = hashlib.sha256()
        for k, v in base.execute("select k, v from t order by k"):
            digest.update(b"%d" % k + v)
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        lines.append(f"sqlite {seed} {n} {digest.hexdigest()}")
    return lines


def mappings(seed, rounds):
    r = random.Random(seed)
    kept = {}
    lines = []
    for n in range(rounds):
        for _ in range(60):
            m = mmap.mmap(-1, mmap.PAGESIZE * r.randrange(1, 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for at in range(0, len(m), mmap.PAGESIZE):
                m[at] = r.randrange(8)
            kept[r.randrange(200)] = m
        digest = hashlib.sha256()
        for k in sorted(kept):
            m = kept[k]
            if r.randrange(4) == 0:
                m.madvise(mmap.MADV_DONTNEED)
            digest.update(m)
        lines.append(f"mmap {seed} {n} {digest.hexdigest()}")
    return lines


def in_child(seed, rounds):
    return mappings(seed, rounds)


def main():
    rounds = int(sys.argv[1])
    lines = []
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as f:
        on_disk = threading.Thread(target=lambda: lines.append(database(1, rounds, f.name)))
        on_disk.start()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            forked = pool.starmap(in_child, [(5, rounds), (6, rounds)])
        own = mappings(7, rounds) + database(2, rounds, ":memory:")
        on_disk.join()
    for line in [*lines[0], *forked[0], *forked[1], *own]:
        print(line)


main()
