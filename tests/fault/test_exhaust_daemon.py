#!/usr/bin/env python3
"""Every call of the daemon fails (tests/fault/exhaust.c): memory, files, sockets, threads.

usage: test_exhaust_daemon.py [--all] [--jobs N] [--call NAME]... [--kind start|life] [--seed N]

At the start: the n-th call of each kind, for every n until a start does not get that far. The daemon either says why it does
not start and ends, or it starts and works. Nothing else: no signal, no daemon that hangs.

While it works for clients that merge, write, fork, discard and check every byte (tests/fault/client.c): the n-th call of each
kind from a moment on, with --all for every n that happens in one cycle of clients that come, merge, are merged on demand and
go; else some. Then every call of the kind for a while. The daemon lives on, no byte differs, nobody waits over a second, and
when nothing fails any more everything is merged as ever."""
import argparse
import errno
import multiprocessing
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import arena as a
from arena import Arena, FaultPage, Failure, until

ERRNOS = {"malloc": errno.ENOMEM, "mmap": errno.ENOMEM, "memfd_create": errno.EMFILE,
          "ftruncate": errno.ENOSPC, "fchmod": errno.EPERM, "fcntl": errno.EMFILE, "open": errno.EMFILE, "ioctl": errno.ENOMEM,
          "pread": errno.EIO, "pwrite": errno.ENOSPC, "sendmsg": errno.ENOBUFS, "recvmsg": errno.ENOMEM, "accept": errno.EMFILE, "socket": errno.EMFILE,
          "pthread_create": errno.EAGAIN}
STARTS_MAX = 3000   # a call that fails so late that no start gets there
SOME = 3            # n tried of each kind in a cycle, without --all
FAIL_ON_SECONDS = 0.7
LD_PRELOAD = {"LD_PRELOAD": str(a.BUILD / "tests/fault/exhaust.so")}


# -- the start

def start_once(directory, page, name, n):
    """Starts a daemon whose n-th call fails. Returns whether it got that far."""
    log = directory / "log"
    page.order(name, "fail", nth=n, value=ERRNOS[name])
    with open(log, "wb") as f:
        daemon = subprocess.Popen([a.BUILD / "daemon/userksmd", "--socket", directory / "sock", *a.OPTIONS],
                                  stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                                  env={**a.os.environ, **LD_PRELOAD, "USERKSM_FAULT": str(page.path)})

    def answers():
        ctl = [a.BUILD / "ctl/ksmctl", "--socket", directory / "sock", "stats"]
        return daemon.poll() is not None or subprocess.run(ctl, capture_output=True, stdin=subprocess.DEVNULL,
                                                           timeout=a.BOUND).returncode == 0
    try:
        until(answers, f"the daemon answers or ends, {name} {n}")
        said = log.read_text(errors="replace")
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
            if daemon.wait(a.BOUND) != 0:
                raise Failure(f"{name} {n}: the daemon started, and ended with status {daemon.returncode}: {said[-1500:]}")
        elif daemon.returncode < 0 or daemon.returncode == 0 or not said.strip():
            raise Failure(f"{name} {n}: the daemon ended with status {daemon.returncode} and said: {said[-1500:]}")
        return page.fired() > 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        page.cancel()


def starts(name):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="userksm-start-"))
    page = FaultPage(directory / "faults")
    for n in range(1, STARTS_MAX):
        if not start_once(directory, page, name, n):
            shutil.rmtree(directory)
            return n - 1
    raise Failure(f"{name}: every start gets further than {STARTS_MAX} calls")


# -- life

class Life(Arena):
    def __init__(self):
        super().__init__(n_clients=2, daemon_env=LD_PRELOAD)
        self.order = self.faults.order
        self.converge(set())

    def cycle(self):
        """Something of everything that the daemon does."""
        self.clients[0].kill()
        self.clients[0].wait()
        self.start_client(0)
        helpers = [subprocess.Popen([a.BUILD / "ctl/ksmctl", "--socket", self.socket, *what], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for what in (("merge", str(self.clients[1].pid)), ("set", "sleep_millisecs=1"), ("status",))]
        self.next_turn()
        try:
            until(lambda: self.alive() and all(t == self.turn for t in self.each("turn_done")), "all clients have written")
        finally:
            for helper in helpers:
                helper.kill()
                helper.wait()

    def settle(self):
        self.faults.cancel()
        until(self.answers, "the daemon answers")
        self.converge(set())
        self.check_waits()
        self.note_segments()

    def count(self, name):
        before = self.faults.reached(name)
        self.cycle()
        self.settle()
        return self.faults.reached(name) - before

    def fail(self, name, action, n):
        self.order(name, action, nth=n, value=ERRNOS[name], pid=self.daemon.pid)
        self.cycle()
        if action == "fail-on":
            time.sleep(FAIL_ON_SECONDS)
        else:
            self.turns_until_fired()
        fired = self.faults.fired()
        self.settle()
        return fired > 0

    def turns_until_fired(self):
        """One cycle is a little shorter than another."""
        end = time.monotonic() + 1
        while not self.faults.fired() and time.monotonic() < end:
            time.sleep(0.01)


def live(name, everything):
    life = Life()
    try:
        n_calls = life.count(name)
        chosen = range(1, n_calls + 1) if everything else sorted(random.sample(range(1, n_calls + 1), min(SOME, n_calls)))
        failed = sum(life.fail(name, "fail", n) for n in chosen)
        failed_on = sum(life.fail(name, "fail-on", n) for n in (1, 2, 5))
        life.leave()
        if life.end_daemon(signal.SIGTERM) != 0:
            raise Failure(f"the daemon ended with status {life.daemon.returncode}")
        return n_calls, failed, failed_on
    except Exception as e:
        raise Failure(f"{e}\n{life.said()}") from None
    finally:
        life.close()


def run(job):
    kind, name, everything, seed = job
    random.seed(seed)
    started = time.monotonic()
    try:
        result = (starts if kind == "start" else lambda n: live(n, everything))(name)
        return job, result, None, time.monotonic() - started
    except Exception as e:  # one report a failure, whatever its kind
        return job, None, f"{type(e).__name__}: {e}", time.monotonic() - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--call", action="append")
    parser.add_argument("--kind", choices=("start", "life"))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    rows, _ = a.table()
    names = [name for side, name, text in rows if side == "call" and text.startswith("daemon")]
    if set(names) != set(ERRNOS):
        raise SystemExit(f"no errno for {set(names) ^ set(ERRNOS)}")
    print(f"seed {args.seed}", flush=True)
    jobs = [(kind, name, args.all, args.seed) for kind in ("start", "life") for name in names
            if args.kind in (None, kind) and (not args.call or name in args.call)]
    failures = 0
    with multiprocessing.Pool(args.jobs, maxtasksperchild=1) as pool:
        for (kind, name, _, _), result, error, seconds in pool.imap_unordered(run, jobs, chunksize=1):
            if error:
                failures += 1
                print(f"FAIL {kind} {name} after {seconds:.1f} s: {error}", flush=True)
            elif kind == "start":
                print(f"start, {name}: each of {result} calls failed once ({seconds:.1f} s)", flush=True)
            else:
                print(f"life, {name}: {result[0]} calls in a cycle, {result[1]} failed once, {result[2]} times all ({seconds:.1f} s)",
                      flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
