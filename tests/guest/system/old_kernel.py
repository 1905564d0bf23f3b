"""The cases on a kernel that is too old: userksm is installed, says what is missing, and nobody is harmed by having it."""
import json
import re
import subprocess

from cases import CLIENT, install
from manager import SERVICE, SOCKET, Redis, drop_in, prop, sh, until

EX_UNAVAILABLE = 69
PROGRAM = """
import hashlib, os, random, threading
memory = [bytearray(random.Random(i).randbytes(1 << 16)) for i in range(64)]
sums = []
def work(part):
    for m in part:
        m[::4096] = bytes(len(m) // 4096)
threads = [threading.Thread(target=work, args=[memory[i::4]]) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
pid = os.fork()
if pid == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print(hashlib.sha256(b"".join(memory)).hexdigest())
"""


def status_of(*command):
    r = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return r.returncode, r.stdout + r.stderr


def says_what_is_missing():
    """Installed as ever but for the start of the service, which fails, and says why, once."""
    status, output = install(until_failure=True)
    assert status != 0, output
    assert prop(SERVICE, "ExecMainStatus") == str(EX_UNAVAILABLE) and prop(SERVICE, "NRestarts") == "0"
    lines = [json.loads(line) for line in sh("journalctl", "-q", "-b", "-o", "json", "-t", "userksmd").splitlines()]
    (message,) = {line["MESSAGE"] for line in lines}
    assert re.match(r"userksmd cannot run here: .*Linux 6\.12\.37 or newer.*6\.1\.", message), message
    print(message)
    status, output = status_of("ksmctl", "check")
    assert status == EX_UNAVAILABLE, (status, output)
    missing = [line for line in output.splitlines() if line.startswith("MISSING")]
    for what in ("Linux 6.12.37", "PAGEMAP_SCAN", "UFFD_FEATURE_MOVE", "UFFD_FEATURE_WP_ASYNC"):
        assert any(what in line for line in missing), output
    print(output)


def services_run():
    """Services with the drop-in for merging: as without, but for a daemon that cannot come."""
    drop_in("redis-server@.service", f"[Service]\n{CLIENT}")
    servers = [Redis("redis-server", instance) for instance in ("a", "b")]
    for s in servers:
        s.fill()
        assert "libuserksm-preload" in open(f"/proc/{s.pid}/maps").read()
    # They have asked for a daemon; systemd starts none for ever.
    until(lambda: prop(SERVICE, "ActiveState") == "failed" and prop(SOCKET, "ActiveState") == "failed", "systemd gives up")
    for s in servers:
        s.check()
        s.fill(seed=2)
        s.check(seed=2)
        sh("systemctl", "stop", s.unit)
        assert prop(s.unit, "Result") == "success", prop(s.unit, "Result")
    said = sh("journalctl", "-q", "-b", "-o", "cat", "-t", "userksmd").splitlines()
    print(f"the daemon was tried {len(said)} times")


def programs_run():
    """Under the shim a program computes what it does without; `ksmctl run` says why it starts nothing."""
    plain = status_of("python3", "-c", PROGRAM)
    assert plain[0] == 0, plain
    for environment in (["USERKSM_MERGE_ANY=1"], ["USERKSM_MERGE_ANY=0"]):
        shimmed = status_of("env", "LD_PRELOAD=libuserksm-preload.so", *environment, "python3", "-c", PROGRAM)
        assert shimmed == plain, shimmed
    status, output = status_of("ksmctl", "run", "true")
    assert status != 0 and "6.12.37" in output, (status, output)
    print(f"ksmctl run: status {status}: {output}")


def reset():
    sh("systemctl", "stop", "redis-server@*")


OLD_CASES = [says_what_is_missing, services_run, programs_run]
