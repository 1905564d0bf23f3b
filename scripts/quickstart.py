#!/usr/bin/python3
"""The show of scripts/quickstart: daemon, 8 redis-server, a live line, and a table at the end."""
import argparse
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/e2e/workloads"))
from engines import Userksm  # noqa: E402
from measure import BUILD, Skip, Wrong, oracle_mib, sum_pss_mib, wait_stable  # noqa: E402
from redis_set import KEYS, RedisSet  # noqa: E402

QUIET_SECONDS = 6
LIMIT_SECONDS = 180
REQUIRED_PERCENT = 92
EXIT_UNAVAILABLE = 69


class Live:
    """One line that refreshes on a terminal, one line per second elsewhere."""

    def __init__(self, engine, before, oracle):
        self.engine, self.before, self.oracle = engine, before, oracle
        self.tty = sys.stdout.isatty()
        self.last = -1.0

    def __call__(self, now, elapsed):
        if not self.tty and elapsed - self.last < 1:
            return
        self.last = elapsed
        saved = self.before - now
        stats = self.engine.stats()
        text = (f"{elapsed:5.1f} s  memory {now:7.1f} MiB  saved {saved:7.1f} MiB = "
                f"{100 * saved / self.oracle:5.1f} % of ideal  (pages shared {stats['pages_shared']:,}, "
                f"sharing {stats['pages_sharing']:,}, zero {stats['ksm_zero_pages']:,})")
        print(("\r\x1b[2K" if self.tty else "") + text, end="" if self.tty else "\n", flush=True)

    def done(self):
        if self.tty:
            print(flush=True)


def check_machine():
    """Says what is missing, in ksmctl's words, and ends with 69 when userksm cannot run here."""
    result = subprocess.run([BUILD / "ctl/ksmctl", "check"], capture_output=True, text=True)
    if result.returncode == EXIT_UNAVAILABLE:
        print(result.stdout + result.stderr, end="")
        sys.exit(EXIT_UNAVAILABLE)


def show(engine, servers):
    print(f"Starting {servers.n_servers} redis-server, each with the same {servers.n_keys:,} keys of 1 KiB ...",
          flush=True)
    begin = time.monotonic()
    servers.start(engine)
    pids = servers.pids()
    print(f"  loaded in {time.monotonic() - begin:.0f} s; {servers.verify()}", flush=True)
    oracle, _ = oracle_mib(pids, servers.ranges)
    before = sum_pss_mib(pids)
    print(f"  {before:.1f} MiB (sum of PSS), of which an ideal page merger would save {oracle:.1f} MiB")

    print("Merging ...", flush=True)
    engine.start_merging()
    live = Live(engine, before, oracle)
    after, seconds = wait_stable(pids, QUIET_SECONDS, LIMIT_SECONDS, live)
    live.done()
    saved = before - after
    summary = engine.summary()
    print("  " + servers.verify())

    print("Rewriting 30 % of the keys with new values ...", flush=True)
    print("  " + servers.change())
    written = sum_pss_mib(pids)
    print("  " + servers.verify())
    live = Live(engine, before, oracle)
    again, _ = wait_stable(pids, QUIET_SECONDS, LIMIT_SECONDS, live)
    live.done()
    print("  " + servers.verify())

    rows = [("memory before (sum of PSS)", f"{before:.1f} MiB"),
            ("an ideal page merger saves", f"{oracle:.1f} MiB"),
            ("userksm saved", f"{saved:.1f} MiB in {seconds:.0f} s"),
            ("  of the ideal", f"{100 * saved / oracle:.1f} %"),
            ("  of the memory", f"{100 * saved / before:.1f} %"),
            ("memory after", f"{after:.1f} MiB"),
            ("after rewriting 30 %", f"{written:.1f} MiB, merged again {again:.1f} MiB"),
            ("daemon: CPU, memory", f"{summary['cpu_seconds']:.1f} s, {sum_pss_mib(engine.own_pids()):.1f} MiB"),
            ("every key read back equal", "before, after merging, after rewriting, after merging again")]
    width = max(len(r[0]) for r in rows)
    print()
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    return 100 * saved / oracle


def keep(engine, servers):
    print(f"\nRunning until ^C. To look at it:\n  {engine.ctl_path} --socket={engine.socket} status\n"
          f"  redis-cli -s {servers.directory}/0.sock get key:00000042", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


def main():
    parser = argparse.ArgumentParser(prog="scripts/quickstart")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--keys", type=int, default=KEYS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    check_machine()
    servers = RedisSet(keys=arguments.keys)
    try:
        with Userksm() as engine:
            try:
                percent = show(engine, servers)
                if arguments.keep:
                    keep(engine, servers)
            finally:
                servers.stop()
    except Skip as e:
        print(f"cannot run here: {e}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except (Wrong, TimeoutError, RuntimeError) as e:
        print(f"FAILED: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if percent < REQUIRED_PERCENT:
        print(f"FAILED: {percent:.1f} % of the ideal saved, {REQUIRED_PERCENT} expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
