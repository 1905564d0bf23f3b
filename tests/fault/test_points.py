#!/usr/bin/env python3
"""Kills, stops and delays the daemon and a client at every fault point of the table (common/fault_points.h).

usage: test_points.py [--all] [--rounds N] [--jobs N] [--point NAME]... [--action NAME]... [--seed N]

Every point once, the actions dealt out anew by each seed; with --all every action at every point.

A daemon and three clients merge, write, discard, fork, unregister and check every byte, all the time (tests/fault/client.c). For each
point and action one of them gets the order to do it the next time it passes:

    kill     it dies there; who died is started again
    stop     it stands still for longer than anybody may wait, then goes on
    orphan   it stops, the other side is killed (the daemon for a client, a client for the daemon), it goes on alone
    delay    it sleeps there

Then: no byte differs anywhere, nobody else waited over a second in an access, fork or call that needs no daemon, who
survived a daemon keeps its savings, and new common content is merged in all clients within three passes (or twice as many as
undisturbed, on a machine so busy that those take more). After some rounds all clients leave: then no process on the machine
may map or hold any segment that was seen. A point that was never reached fails the run."""
import argparse
import collections
import multiprocessing
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import arena as a
from arena import Arena, Failure, until

ACTIONS = ("kill", "stop", "orphan", "delay")
HOLD = 1.2          # seconds that a stopped process stays so: more than the second that others may wait
DELAY_USEC = 150000
LINGER_USEC = 500000 # of forked children: pages are hashed meanwhile, and merged when they are gone
ALONE = 0.3         # seconds without the other side
ROUNDS_AN_ARENA = 16
FIRE_BOUND = 30     # seconds until a point is passed
PASSES_MAX = 3
UNDISTURBED_TURNS = 3
SLOW_TRIES = 2
LONGEST_WAITS = 6   # that are shown
# Passed only by processes that are starting, or have just been forked: whoever comes first is meant.
ANYBODY = ("start_", "agent_", "child_", "link_connected", "link_hello", "link_welcome", "link_ranges", "contexts_", "plain_",
           # or rarely, and by whom cannot be said
           "hole_exclusive", "hole_returning", "freeze_", "event_", "witness_")
# Passed only where a service manager keeps segments for the next daemon; all others are passed with and without.
STARTING = ("segment_adopted", "slots_adopted")
SUPERVISED = (*STARTING, "segment_kept", "runs_come", "report_sent")
STIMULUS_PAUSE = 1.0  # seconds, a little longer each time: what is started anew must get to where it is to die
ADMIN_HELLO, STATS_REQUEST, VERSION = 0x20, 0x22, 1  # proto/messages.h


def frame(message_type):
    """Header and a body of zeros."""
    return struct.pack("=IHHII8x", 24, message_type, VERSION, 0, 0)


class NotPassed(Failure):
    """A rare point that nobody passed in time."""


class Round:
    """One point and action in an arena."""

    def __init__(self, arena, side, name, action):
        self.arena, self.side, self.name, self.action = arena, side, name, action
        self.helpers = []
        self.last_turn = time.monotonic()
        self.last_stimulus = 0.0
        self.stimulus_pause = STIMULUS_PAUSE
        self.restarted = False
        self.excepted = set()

    # -- what makes rare points come to pass; called again and again until the order was carried out

    def stir(self):
        now = time.monotonic()
        arena = self.arena
        if now - self.last_turn > 0.3 and all(t == arena.turn for t in arena.each("turn_done")):
            arena.next_turn()
            self.last_turn = now
        if now - self.last_stimulus > self.stimulus_pause:
            self.last_stimulus = now
            self.stimulus_pause *= 1.5
            self.stimulate()

    def stimulate(self):
        name, arena = self.name, self.arena
        if name.startswith("reload_"):
            a.send(arena.daemon.pid, signal.SIGHUP)
        elif name.startswith("stop_"):
            a.send(arena.daemon.pid, signal.SIGTERM)
        elif name.startswith("daemon_") or name in SUPERVISED and name != "segment_kept":
            self.restarted = True
            arena.end_daemon(signal.SIGKILL)
            arena.spawn_daemon()
        elif name.startswith("admin_"):
            self.help("merge", str(arena.clients[1].pid))
        elif name == "tunable_set":
            self.help("set", "sleep_millisecs=1")
        elif name == "client_parked":
            self.pause_client(1)
        elif name == "hole_exclusive":
            arena.linger(LINGER_USEC)
        elif name in ("ping_sent", "pong_come") and not self.helpers:
            self.helpers.append(arena.spawn([a.BUILD / "tests/fault/client", arena.board.path, "7", "quiet"],
                                            USERKSM_SOCKET=str(arena.socket)))
        elif name.startswith("session_queued") or name == "session_flushed":
            self.flood()
        elif name == "link_closed":
            self.restart_daemon(signal.SIGKILL)
        elif name == "plain_copied":
            self.restarted = True
            arena.end_daemon(signal.SIGKILL)
            until(arena.faults.fired, "a child finds no daemon", 10)
            arena.start_daemon()

    def help(self, *arguments):
        """ksmctl, which may wait for a daemon that is stopped."""
        self.helpers.append(subprocess.Popen([a.BUILD / "ctl/ksmctl", "--socket", self.arena.socket, *arguments],
                                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def pause_client(self, i):
        self.excepted.add(i)
        pid = self.arena.clients[i].pid
        a.send(pid, signal.SIGSTOP)
        time.sleep(HOLD + 0.2)
        a.send(pid, signal.SIGCONT)

    def flood(self):
        """An administrator who asks and asks, and reads the answers later."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.settimeout(2)
            try:
                s.connect(str(self.arena.socket))
                s.send(frame(ADMIN_HELLO))
                for _ in range(2000):
                    s.send(frame(STATS_REQUEST))
            except OSError:
                pass
            s.settimeout(0.1)
            try:
                while s.recv(65536):
                    pass
            except OSError:
                pass

    def restart_daemon(self, number):
        self.restarted = True
        self.arena.end_daemon(number)
        self.arena.start_daemon()

    # -- the round

    def run(self):
        arena, faults = self.arena, self.arena.faults
        for i in range(len(arena.clients)):
            arena.forgive(i)
        pid = 0
        if self.side == "agent" and not self.name.startswith(ANYBODY):
            pid = random.choice(arena.clients).pid
        action = {"orphan": "stop"}.get(self.action, self.action)
        nth = random.choice((1, 1, 1, 2, 5)) if self.side == "agent" and pid else 1
        faults.order(self.name, action, nth=nth, value=DELAY_USEC, pid=pid)
        try:
            end = time.monotonic() + FIRE_BOUND
            while not faults.fired():
                self.stir()
                if not faults.fired() and time.monotonic() > end:
                    threads = "\n".join(a.describe(c.pid) for c in arena.clients)
                    raise NotPassed(f"not passed by whom it was ordered; by anybody, ever: {faults.reached(self.name)}; merges "
                                    f"{arena.each('merges')}, forks {arena.each('forks')}, {arena.counters()}\n{threads}")
                time.sleep(0.005)
            self.after()
        finally:
            faults.cancel()
            arena.linger(0)
            for helper in self.helpers:
                helper.kill()
                helper.wait()
        self.judge()
        arena.note_segments()

    def after(self):
        """The order was carried out; whoever it was about."""
        arena, pid = self.arena, self.arena.faults.fired_pid()
        self.is_daemon = pid == arena.daemon.pid
        self.index = next((i for i, c in enumerate(arena.clients) if c.pid == pid), None)
        # A forked child of a client counts its waits with its parent's.
        family = (pid, a.parent_of(pid))
        self.excepted |= {i for i, c in enumerate(arena.clients) if c.pid in family}
        arena.faults.cancel()
        if self.action == "kill":
            self.replace_dead()
        elif self.action == "delay":
            time.sleep(DELAY_USEC / 1e6)
            self.daemon_may_end()
        else:
            try:
                until(lambda: a.has_stopped(pid), f"process {pid} has stopped")
            except Failure as e:
                raise Failure(f"{e}: {a.describe(pid)}")
            if self.action == "stop":
                time.sleep(HOLD)
                arena.check_waits(self.excepted)
            elif self.is_daemon:
                arena.clients[0].kill()
                arena.clients[0].wait()
            else:
                arena.end_daemon(signal.SIGKILL)
                self.restarted = True
            a.send(pid, signal.SIGCONT)
            if self.action == "orphan":
                if self.is_daemon:
                    self.new_client(0)
                else:
                    arena.check_savings_stay()
                    arena.start_daemon()
            self.daemon_may_end()
        arena.check_waits(self.excepted)

    def new_client(self, i):
        self.arena.start_client(i)
        self.excepted.add(i)

    def replace_dead(self):
        arena = self.arena
        if self.is_daemon:
            status = arena.daemon.wait(a.BOUND)
            if status != -signal.SIGKILL:
                raise Failure(f"the daemon ended with status {status}")
            arena.check_savings_stay()
            arena.start_daemon()
            self.restarted = True
        elif self.index is not None:
            arena.clients[self.index].wait(a.BOUND)
            self.new_client(self.index)

    def daemon_may_end(self):
        """It was starting, or about to leave."""
        if self.name.startswith("daemon_") or self.name in STARTING:
            until(self.arena.answers, "the daemon answers after all")
        elif self.name.startswith("stop_") and self.is_daemon:
            status = self.arena.daemon.wait(a.BOUND)
            if status != 0:
                raise Failure(f"the daemon ended with status {status}")
            self.arena.start_daemon()
            self.restarted = True

    def judge(self):
        arena = self.arena
        for i in self.excepted:
            arena.forgive(i)
        arena.alive()
        if self.restarted:
            arena.note_restart()
        self.passes = arena.converge(arena.steady_expected())
        arena.check_waits(self.excepted)
        if self.passes > max(PASSES_MAX, 2 * arena.undisturbed):
            arena.measure_undisturbed()
        self.slow = self.passes > max(PASSES_MAX, 2 * arena.undisturbed)


class Field(Arena):
    """Knows whose steady area must be merged: a daemon can merge what two have shown it. (What the one before it had merged stays,
    but for what that one was about to merge elsewhere when it died.)"""

    def __init__(self, **kwargs):
        self.fresh = set()
        self.undisturbed = 0  # passes, the most seen
        super().__init__(**kwargs)
        self.converge(self.steady_expected())
        self.measure_undisturbed()

    def measure_undisturbed(self):
        for _ in range(UNDISTURBED_TURNS):
            self.undisturbed = max(self.undisturbed, self.converge(self.steady_expected()))

    def start_client(self, i):
        self.fresh.add(i)
        super().start_client(i)

    def note_restart(self):
        self.fresh.clear()

    def steady_expected(self):
        return self.fresh if len(self.fresh) > 1 else set()

    def check_savings_stay(self):
        """While no daemon is there, or it can do nothing, nothing that is merged may come apart."""
        before = self.each("merged")
        time.sleep(ALONE)
        for i, client in enumerate(self.clients):
            now = self.board.get(i, "merged")
            if client.poll() is None and now >> 32 < before[i] >> 32:
                raise Failure(f"client {i} had {before[i] >> 32} steady pages merged, and without daemon {now >> 32}")


class Played:
    """What came of some rounds."""

    def __init__(self):
        self.results, self.reached, self.waits = [], collections.Counter(), []


def play_some(combinations, played, supervised):
    """Rounds in one arena, until one fails. Returns how many."""
    field = None
    try:
        field = Field(supervised=supervised)
        for n, (side, name, action) in enumerate(combinations, 1):
            r = Round(field, side, name, action)
            started = time.monotonic()
            try:
                r.run()
                played.results.append((side, name, action, r.passes, r.slow, time.monotonic() - started, None, ""))
            except Exception as e:  # one report a failure, whatever its kind
                played.results.append((side, name, action, 0, isinstance(e, (NotPassed, a.Waited)), time.monotonic() - started,
                                       f"{type(e).__name__}: {e}", field.said()))
                return n
            finally:
                played.waits.append((field.worst_usec, field.worst_what, f"{name}:{action}"))
                field.worst_usec = 0
        field.leave()
        field.end_daemon(signal.SIGTERM)
    except Exception as e:
        played.results.append(("arena", "end of", str(combinations), 0, False, 0, f"{type(e).__name__}: {e}",
                               field.said() if field else ""))
    finally:
        if field:
            for _, name, _ in field.faults.rows:
                played.reached[name] += field.faults.reached(name)
            field.close()
    return len(combinations)


def play(job):
    number, combinations, seed, supervised = job
    random.seed(seed + number)
    played = Played()
    while combinations:
        combinations = combinations[play_some(combinations, played, supervised):]
    return played


class Tally:
    def __init__(self):
        self.done, self.waits = 0, []
        self.passes, self.reached, self.failures = collections.Counter(), collections.Counter(), []


def play_all(wanted, args, tally):
    """Returns what was slow: waits, passes, or not passed in time."""
    sides = [], []
    for i, c in enumerate(wanted):
        sides[c[1] in SUPERVISED or i % 2].append(c)
    chunks = [(some[at:at + ROUNDS_AN_ARENA], supervised == 1)
              for supervised, some in enumerate(sides) for at in range(0, len(some), ROUNDS_AN_ARENA)]
    jobs = [(i, chunk, args.seed, is_supervised) for i, (chunk, is_supervised) in enumerate(chunks)]
    slow = []
    with multiprocessing.Pool(args.jobs, maxtasksperchild=1) as pool:
        for played in pool.imap_unordered(play, jobs, chunksize=1):
            tally.reached.update(played.reached)
            tally.waits += played.waits
            for side, name, action, passes, was_slow, seconds, error, log in played.results:
                if error and not was_slow:
                    tally.failures.append((name, action))
                    print(f"FAIL {name}:{action} after {seconds:.1f} s: {error}\n{log}", flush=True)
                    continue
                tally.done += not was_slow
                if not error:
                    tally.passes[passes] += 1
                if was_slow:
                    slow.append((side, name, action))
                    print(f"slow: {name}:{action}: {error or f'{passes} passes'}", flush=True)
    return slow


def choose(points, args):
    """Shuffled: what happens in an arena differs from run to run."""
    actions = args.action or ACTIONS
    points = [p for p in points if not args.point or p[1] in args.point]
    if args.all or args.action or args.point:
        wanted = [(side, name, action) for side, name in points for action in actions] * args.rounds
    else:
        wanted = [(side, name, ACTIONS[(i + turn + args.seed) % len(ACTIONS)]) for i, (side, name) in enumerate(points)
                  for turn in range(args.rounds)]
    random.seed(args.seed)
    random.shuffle(wanted)
    return wanted


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--point", action="append")
    parser.add_argument("--action", action="append")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    rows, _ = a.table()
    points = [(side, name) for side, name, _ in rows if side != "call"]
    wanted = choose(points, args)
    print(f"seed {args.seed}, {len(wanted)} combinations of {len(points)} points", flush=True)
    started = time.monotonic()
    tally = Tally()
    slow = play_all(wanted, args, tally)
    for _ in range(SLOW_TRIES):  # each once more: every time is us, once is a busy machine
        slow = play_all(slow, args, tally) if slow else []
    unreached = [name for _, name in points if not tally.reached[name]] if not args.point else []
    print(f"{tally.done} of {len(wanted)} combinations in {time.monotonic() - started:.0f} s; passes until merged again: "
          f"{dict(sorted(tally.passes.items()))}")
    waits = sorted(tally.waits, reverse=True)[:LONGEST_WAITS]
    print("longest waits of somebody else: " + ", ".join(f"{usec} us in {what} at {where}" for usec, what, where in waits))
    for name in unreached:
        print(f"FAIL {name}: no run ever reached it")
    for _, name, action in slow:
        print(f"FAIL {name}:{action}: not passed, somebody waited, or more than {PASSES_MAX} passes, {SLOW_TRIES + 1} times")
    for name, action in tally.failures:
        print(f"failed: {name}:{action}")
    sys.exit(1 if tally.failures or unreached or slow else 0)


if __name__ == "__main__":
    main()
