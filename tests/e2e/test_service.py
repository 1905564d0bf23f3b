#!/usr/bin/env python3
"""userksmd as its unit runs it, under a small supervisor in place of systemd: socket passing (LISTEN_FDS), READY=1,
WATCHDOG=1 in time, RELOADING=1, STOPPING=1, and a loop that hangs stops the watchdog's messages. How its threads are scheduled.
Then that it merges as a user without any capability."""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

from harness import BUILD, run, until
from supervisor import EXEC_FAILED, WATCHDOG_USEC, Supervisor

NOBODY = 65534


def ctl(path, *arguments):
    return subprocess.run([BUILD / "ctl/ksmctl", "--socket", path, *arguments], capture_output=True, text=True,
                          timeout=60)


def life_of_a_service():
    with Supervisor() as s:
        s.start()
        # Somebody who connects before the daemon runs waits in the queue and is served.
        early = subprocess.Popen([BUILD / "ctl/ksmctl", "--socket", s.socket, "get", "run"], stdout=subprocess.PIPE,
                                 text=True)
        s.wait_for("READY=1")
        assert early.communicate(timeout=20)[0] == "1\n"
        assert not os.path.exists(s.directory + "/not-this-one"), "it made one of its own"
        assert ctl(s.socket, "stats").returncode == 0

        s.wait_for("WATCHDOG=1", 5)
        signs = s.times("READY=1")[:1] + s.times("WATCHDOG=1")
        gaps = [b - a for a, b in zip(signs, signs[1:])]
        assert max(gaps) < WATCHDOG_USEC / 1e6, f"signs of life too far apart for the watchdog: {gaps}"

        os.kill(s.process.pid, signal.SIGHUP)
        s.wait_for("RELOADING=1")
        s.wait_for("READY=1", 2)

        os.kill(s.process.pid, signal.SIGTERM)
        status = s.process.wait()
        assert status == 0, f"SIGTERM: exit status {status}"
        s.heard_all()
        assert s.times("STOPPING=1"), "it did not say STOPPING=1"
        assert os.path.exists(s.socket), "it removed a socket that is the supervisor's"
        # The socket outlives it: who connects now waits for the next one.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as c:
            c.connect(s.socket)


def hung_loop_is_noticed():
    with Supervisor() as s:
        s.start()
        s.wait_for("READY=1")
        s.wait_for("WATCHDOG=1")
        os.kill(s.process.pid, signal.SIGSTOP)
        until(lambda: open(f"/proc/{s.process.pid}/stat").read().rsplit(")", 1)[1].split()[0] == "T", 10, "it is stopped")
        s.heard_all()
        before = len(s.messages)
        time.sleep(WATCHDOG_USEC / 1e6)  # long enough for one
        s.heard_all()
        assert len(s.messages) == before, "a stopped daemon gave a sign of life"
        os.kill(s.process.pid, signal.SIGCONT)
        s.wait_for("WATCHDOG=1", len(s.times("WATCHDOG=1")) + 1)
        os.kill(s.process.pid, signal.SIGTERM)
        assert s.process.wait() == 0


def takes_no_processor_away():
    """None of its threads interrupts who is running; a policy that the operator has chosen stays."""
    before, policies = os.sched_getscheduler(0), {os.SCHED_OTHER: os.SCHED_BATCH}
    if os.geteuid() == 0:  # or this process could not go back from it
        policies[os.SCHED_IDLE] = os.SCHED_IDLE
    for given, wanted in policies.items():
        with Supervisor() as s:
            os.sched_setscheduler(0, given, os.sched_param(0))
            try:
                s.start()
            finally:
                os.sched_setscheduler(0, before, os.sched_param(0))
            s.wait_for("READY=1")
            found = {int(t): os.sched_getscheduler(int(t)) for t in os.listdir(f"/proc/{s.process.pid}/task")}
            assert len(found) > 1 and set(found.values()) == {wanted}, f"policies of its threads: {found}, not {wanted}"


def wrong_socket_is_refused():
    """Handed a socket of another kind: a clear end, not a daemon that nobody can reach."""
    with Supervisor(kind=socket.SOCK_STREAM) as s:
        s.start()
        status = s.process.wait()
        assert status not in (0, EXEC_FAILED), status
        s.heard_all()
        assert not s.times("READY=1")
        assert "SEQPACKET" in s.said(), f"it did not say why: {s.said()}"


def second_socket_is_refused():
    with Supervisor() as s, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
        second.bind(s.directory + "/second")
        second.listen()
        s.start(extra=[("second", second.fileno())])
        status = s.process.wait()
        assert status not in (0, EXEC_FAILED), status
        assert "exactly one socket" in s.said(), f"it did not say why: {s.said()}"


HOLDER = r"""
import os, random, sys
data = random.Random(1).randbytes(8 << 20)
os.write(1, b"loaded\n")
sys.stdin.read()
"""


def needs_no_privilege():
    """As the unit has it: a user of its own, no capability, /dev/userfaultfd by its mode. In a mount namespace, so that
    the machine's own device keeps the mode that it has."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        print("# needs root, unshare and setpriv: not tried")
        return
    with tempfile.TemporaryDirectory(prefix="userksm-test-") as directory:
        os.chmod(directory, 0o777)
        shutil.copy(BUILD / "daemon/userksmd", directory)  # the build may be in a place that others cannot enter
        device, path = directory + "/device", directory + "/sock"
        os.mknod(device, 0o600 | stat.S_IFCHR, os.stat("/dev/userfaultfd").st_rdev)
        os.chmod(device, 0o660)
        os.chown(device, 0, NOBODY)
        command = (f"mount --bind {device} /dev/userfaultfd && exec setpriv --reuid={NOBODY} --regid={NOBODY} "
                   f"--clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "
                   f"{directory}/userksmd --socket {path}")
        with open(directory + "/log", "wb") as log:
            daemon = subprocess.Popen(["unshare", "--mount", "sh", "-c", command], stderr=log, stdin=subprocess.DEVNULL)
        holders = []
        try:
            until(lambda: daemon.poll() is not None or ctl(path, "stats").returncode == 0, 20, "the daemon answers")
            assert daemon.poll() is None, open(directory + "/log").read()
            status = dict(line.split(":", 1) for line in open(f"/proc/{daemon.pid}/status"))
            assert int(status["CapEff"], 16) == 0 and status["Uid"].split()[1] == str(NOBODY), status
            for _ in range(2):
                holders.append(subprocess.Popen([BUILD / "ctl/ksmctl", "--socket", path, "run", "-q", sys.executable,
                                                 "-c", HOLDER],
                                                stdin=subprocess.PIPE, stdout=subprocess.PIPE))
                assert holders[-1].stdout.readline() == b"loaded\n"

            def merged():
                ctl(path, "merge", "all")
                processes = json.loads(ctl(path, "status", "--json").stdout)["processes"]
                return len(processes) == 2 and all(p["merged_bytes"] >= 8 << 20 for p in processes)
            until(merged, 60, "both hold their 8 MiB merged")
        finally:
            for h in holders:
                h.communicate()
                assert h.returncode == 0, h.returncode
            daemon.terminate()
            daemon.wait(20)


run(life_of_a_service, hung_loop_is_noticed, takes_no_processor_away, wrong_socket_is_refused, second_socket_is_refused, needs_no_privilege)
