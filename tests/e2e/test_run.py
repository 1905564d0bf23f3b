#!/usr/bin/env python3
"""ksmctl run with the real daemon and the real shim: which daemon it takes, that processes really connect and really
save, what it says when they do not, and that the command is what it would be without."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

from harness import BUILD, Daemon, rollup, run, until

KSMCTL = str(BUILD / "ctl/ksmctl")
MIB = 1 << 20
# Two processes with the same 32 MiB of distinct pages; each holds them until its stdin ends, then prints a checksum.
WORKER = r"""
import os, sys, zlib, random
r = random.Random(1)
data = bytearray(r.randbytes(32 << 20))
os.write(1, b"loaded %d\n" % os.getpid())
sys.stdin.read()
os.write(1, b"%d\n" % zlib.crc32(data))
"""
NO_DAEMON = "/nonexistent/userksm.sock"


def ksmctl(*arguments, **environment):
    return subprocess.run([KSMCTL, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
                          env={**os.environ, "USERKSM_SOCKET": NO_DAEMON, **environment})


def pass_time(seconds):
    """Not for a result, but for something that must not happen, or is sampled, in that time."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, seconds + 10, "time passes")


def socket_of(pid):
    """The socket that a process under ksmctl run was told."""
    variables = dict(v.split("=", 1) for v in open(f"/proc/{pid}/environ").read().split("\0") if "=" in v)
    return variables["USERKSM_SOCKET"]


def status_of(path):
    return json.loads(subprocess.run([KSMCTL, "--socket", path, "status", "--json"], capture_output=True, timeout=60,
                                     check=True).stdout)


def private_directories():
    return os.listdir(os.environ["XDG_RUNTIME_DIR"])


def the_command_is_as_without():
    for command, status in ((["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137),
                            (["/nonexistent/x"], 127), (["/etc/passwd"], 126)):
        r = ksmctl("run", "--", *command)
        assert r.returncode == status, (command, r)
        assert r.stdout == "", r
        until(lambda: not private_directories(), 20, "the private daemon and its directory are gone")
    r = ksmctl("run", "-q", "--", "sh", "-c", "echo out; echo err >&2; cat", **{"X": "y"})
    assert (r.returncode, r.stdout, r.stderr) == (0, "out\n", "err\n"), r


def odd_starters():
    """SIGCHLD ignored, a standard error that nobody reads, a relative path: as without, for the command as well."""
    with Daemon() as d:
        ask = "import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN)"
        r = subprocess.run([KSMCTL, "--socket", d.socket, "run", sys.executable, "-c", ask], capture_output=True,
                           text=True,
                           timeout=20, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
        assert (r.returncode, r.stdout) == (0, "True\n"), r
        read_end, write_end = os.pipe()
        os.close(read_end)
        r = subprocess.run([KSMCTL, "--socket", d.socket, "run", "sh", "-c", "exit 4"], stderr=write_end, timeout=20)
        os.close(write_end)
        assert r.returncode == 4, r
        r = subprocess.run([KSMCTL, "--socket", os.path.basename(d.socket), "run", "-q", "sh", "-c",
                            "cd / && printenv USERKSM_SOCKET"], cwd=os.path.dirname(d.socket), capture_output=True,
                           text=True,
                           timeout=20)
        assert r.stdout == d.socket + "\n", r


def a_private_daemon_merges_a_pipeline():
    """Saved memory is measured from outside: the sum of PSS."""
    script = f'{sys.executable} -c "$W" <&3 & {sys.executable} -c "$W" <&3 & wait'
    read_end, write_end = os.pipe()
    process = subprocess.Popen([KSMCTL, "run", "--", "sh", "-c", f"exec 3<&0; {script}"], stdin=read_end,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "USERKSM_SOCKET": NO_DAEMON, "W": WORKER})
    os.close(read_end)
    pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    path = socket_of(pids[0])
    assert "libuserksm-preload.so" in open(f"/proc/{pids[0]}/maps").read()
    until(lambda: {p["pid"] for p in status_of(path)["processes"]} >= set(pids), 20, "both workers are connected")
    full = sum(rollup(p) for p in pids)

    def merged_in_both():
        status = status_of(path)
        return status["saved_bytes"] >= 30 * MIB and all(p["merged_bytes"] >= 30 * MIB for p in status["processes"] if p["pid"] in pids)
    until(lambda: merged_in_both() or not subprocess.run(
        [KSMCTL, "--socket", path, "merge", "all"], capture_output=True, timeout=60), 60, "32 MiB are saved")
    fall = full - sum(rollup(p) for p in pids)
    print(f"# sum of PSS fell from {full} by {fall} KiB; the daemon says {status_of(path)['saved_bytes'] >> 10} KiB")
    saved = {p["pid"]: p for p in status_of(path)["processes"]}
    assert all(saved[p]["merged_bytes"] >= 30 * MIB for p in pids), saved
    pass_time(1.5)  # ksmctl looks twice a second
    os.close(write_end)
    out, err = process.communicate(timeout=60)
    sums = out.split()
    assert process.returncode == 0 and len(sums) == 2 and sums[0] == sums[1], (out, err)
    assert fall >= 30 << 10, "less fell than was said to be saved"
    peak = re.search(r"at the peak +([0-9.]+) MiB saved, .* in 3 processes", err)
    assert peak and float(peak.group(1)) >= 30, err
    until(lambda: not os.path.exists(os.path.dirname(path)), 20, "the private daemon's directory is removed")


def descendants_outlive_the_command():
    """The private daemon stays for what the command left behind, and holds no pipe open meanwhile."""
    read_end, write_end = os.pipe()
    with tempfile.TemporaryDirectory() as directory:
        script = (f'exec 3<&0; {sys.executable} -c "$W" <&3 >{directory}/out 2>&1 & echo $!; '
                  f'while [ ! -s {directory}/out ]; do sleep 0.05; done')
        r = subprocess.run([KSMCTL, "run", "-q", "--", "sh", "-c", script], stdin=read_end, capture_output=True,
                           text=True,
                           timeout=60, env={**os.environ, "USERKSM_SOCKET": NO_DAEMON, "W": WORKER})
        os.close(read_end)
        assert r.returncode == 0, r
        pid, path = int(r.stdout), socket_of(int(r.stdout))
        until(lambda: [p["pid"] for p in status_of(path)["processes"]] == [pid], 20, "only the worker is left")
        pass_time(3)  # longer than a private daemon without clients stays
        assert [p["pid"] for p in status_of(path)["processes"]] == [pid], "it went away under its client"
        os.close(write_end)
        until(lambda: not os.path.exists(os.path.dirname(path)), 30, "the private daemon ends with its last client")


def a_killed_ksmctl_leaves_nothing():
    process = subprocess.Popen([KSMCTL, "run", "--", "sh", "-c", "echo $$; exec sleep 600"], stdout=subprocess.PIPE,
                               text=True,
                               env={**os.environ, "USERKSM_SOCKET": NO_DAEMON})
    child = int(process.stdout.readline())
    assert private_directories()
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)
    until(lambda: not private_directories(), 30, "daemon and directory go with the last client")


def signals_reach_the_command():
    with Daemon() as d:
        script = 'trap "echo got; exit 5" %s; echo up; while :; do sleep 0.05; done'
        for name in "TERM", "HUP", "USR1", "INT", "QUIT":
            number = getattr(signal, "SIG" + name)
            # Whoever started the tests may ignore it (nohup), and a shell cannot trap what it was started to ignore.
            process = subprocess.Popen([KSMCTL, "--socket", d.socket, "run", "-q", "sh", "-c", script % name],
                                       stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
            assert (process.returncode, out) == (5, "got\n"), (name, process.returncode, out)


def an_existing_daemon_is_taken():
    with Daemon() as d:
        r = ksmctl("run", "sleep", "1", USERKSM_SOCKET=d.socket)
        assert r.returncode == 0 and "at the end" in r.stderr, r
        r = ksmctl("--socket", NO_DAEMON, "run", "true")
        assert r.returncode == 125 and "no daemon" in r.stderr, r
        r = ksmctl("run", "--no-private", "true")
        assert r.returncode == 125 and "no daemon" in r.stderr, r
        assert not private_directories()


def a_missing_handshake_is_explained():
    with Daemon() as d, tempfile.TemporaryDirectory() as directory:
        with open(directory + "/s.c", "w") as f:
            f.write("#include <unistd.h>\nint main(void) { sleep(4); return 3; }\n")
        r = subprocess.run(["cc", "-static", "-o", directory + "/static", directory + "/s.c"], capture_output=True)
        cases = [(["env", "-i", "sleep", "4"], 0, "an environment of its own")]
        if r.returncode == 0:
            cases.append(([directory + "/static"], 3, "linked statically"))
        else:
            print("# no static libc: the static program is not tried")
        for command, status, text in cases:
            r = ksmctl("run", "--", *command, USERKSM_SOCKET=d.socket)
            assert r.returncode == status and "after 3 s" in r.stderr and text in r.stderr, r


def a_dying_daemon_harms_nothing():
    with Daemon() as d:
        process = subprocess.Popen([KSMCTL, "--socket", d.socket, "run", "sh", "-c", "echo up; read x; exit 9"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "up\n"
        d.stop(signal.SIGKILL)
        assert "the daemon went away" in process.stderr.readline()
        _, err = process.communicate("x\n", timeout=20)
        assert process.returncode == 9, err


with tempfile.TemporaryDirectory() as runtime:
    os.environ["XDG_RUNTIME_DIR"] = runtime  # private daemons of others on this machine are not ours to count
    run(the_command_is_as_without, odd_starters, a_private_daemon_merges_a_pipeline, descendants_outlive_the_command,
        a_killed_ksmctl_leaves_nothing, signals_reach_the_command, an_existing_daemon_is_taken,
        a_missing_handshake_is_explained, a_dying_daemon_harms_nothing)
