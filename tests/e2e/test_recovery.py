#!/usr/bin/env python3
"""The daemon dies, is restarted, is replaced: its segments wait with the service manager (supervisor.py plays it), the next daemon takes
them over, agents report their runs, the books come back to what the kernel shows. What nobody may take over is refused."""
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile

from harness import Victim, frames, rollup, run, until
from supervisor import Supervisor

PAGES = 512
CRASHES = 20
NOBODY = 65534
GRACE = "--adopt_grace_millisecs=700"
LONG_GRACE = "--adopt_grace_millisecs=3600000"


def has(d, what, **want):
    def look():
        s = d.stats()
        return s if all(s[k] == v for k, v in want.items()) else None
    try:
        return until(look, 40, what)
    except AssertionError as e:
        s = d.stats()
        raise AssertionError(f"{e}: {dict((k, s[k]) for k in want)}, not {want}") from None


def victims_of(d, n, pages=PAGES, seed=1000):
    victims = []
    for _ in range(n):
        v = Victim(d)
        v.do("map", "m", pages)
        v.do("fill", "m", 0, pages, seed)
        victims.append(v)
    return victims


def started(*options, **how):
    s = Supervisor(*options, **how)
    s.start()
    s.wait_for("READY=1")
    return s


def private_kib(victims):
    return sum(rollup(v.pid, "Anonymous") for v in victims)


# The shell of a process moves by itself, by less than what a fiftieth of its merged pages would be.
NOISE_KIB = 64


def grace_is_over(d):
    d.ctl("set", "adopt_grace_millisecs=0")
    has(d, "the store is empty", pages_shared=0, segments=0)
    until(lambda: not d.store, 20, "the service manager keeps nothing")


def store_kib(d):
    return sum(os.fstat(fd).st_blocks for _, fd in d.store.values()) // 2


def crashes_cost_nothing():
    """CRASHES times kill -9: what the processes hold for themselves never grows, the books come back, and merging goes on."""
    with started(LONG_GRACE) as d:
        victims = victims_of(d, 3)
        has(d, "merged", pages_shared=PAGES, pages_sharing=2 * PAGES)
        before = [frames(v, "m", PAGES) for v in victims]
        for i in range(CRASHES):
            held = private_kib(victims)
            d.process.send_signal(signal.SIGKILL)
            d.process.wait()
            assert private_kib(victims) <= held + NOISE_KIB, f"crash {i}: the processes grew from {held} to {private_kib(victims)} KiB"
            d.heard_all()
            store = store_kib(d)
            n, heard = len(d.times("READY=1")), len(d.messages)
            d.start()
            d.wait_for("READY=1", n + 1)
            s = has(d, f"books are back after crash {i}", pages_shared=PAGES, pages_sharing=2 * PAGES)
            assert s["segments_adopted"] == len(d.store) and s["pages_adopted"] == 3 * PAGES, s
            d.heard_all()
            said = [m.split("=")[0] for _, m in d.messages[heard:] if m.startswith(("EXTEND_TIMEOUT_USEC=", "READY="))]
            assert said == ["EXTEND_TIMEOUT_USEC"] * len(d.store) + ["READY"], f"while it took over it said {said}"
            assert private_kib(victims) <= held + NOISE_KIB, f"crash {i}: the processes grew from {held} to {private_kib(victims)} KiB"
            assert store_kib(d) == store, f"crash {i}: {store_kib(d)} KiB of segments, before it {store}"
        assert [frames(v, "m", PAGES) for v in victims] == before, "a page moved"
        # They are checked against the kernel, and a new one merges into slots that are older than its daemon.
        passes = d.stats()["full_scans"]
        until(lambda: d.stats()["full_scans"] >= passes + 5, 30, "5 passes")
        victims += victims_of(d, 1)
        has(d, "a new process shares old segments", pages_shared=PAGES, pages_sharing=3 * PAGES)
        d.heard_all()
        assert store_kib(d) == store, "the new one was given segments of its own"
        for v in victims:
            v.do("check", "m")
            v.do("poke", "m", 0, 16)
            v.do("check", "m")
        has(d, "writes are noticed", pages_shared=PAGES, pages_sharing=3 * PAGES)  # equal again, all of them
        for v in victims:
            v.do("check", "m")
            v.quit()
        grace_is_over(d)


def orderly_restart():
    """SIGTERM, as for `systemctl restart` and an upgrade."""
    with started(LONG_GRACE) as d:
        victims = victims_of(d, 3)
        has(d, "merged", pages_shared=PAGES, pages_sharing=2 * PAGES)
        for _ in range(3):
            d.restart(signal.SIGTERM)
            has(d, "books are back", pages_shared=PAGES, pages_sharing=2 * PAGES)
        for v in victims:
            v.do("check", "m")
            v.quit()
        grace_is_over(d)


def what_nobody_maps_goes():
    """Clients that ended while no daemon ran: their segments go after the grace, those of the others stay."""
    with started(GRACE) as d:
        stay, leave = victims_of(d, 2), victims_of(d, 2, 5 * PAGES, 100000)
        has(d, "merged", pages_shared=6 * PAGES, pages_sharing=6 * PAGES)
        d.process.send_signal(signal.SIGKILL)
        d.process.wait()
        for v in leave:
            v.kill()
        n = len(d.times("READY=1"))
        d.start()
        d.wait_for("READY=1", n + 1)
        has(d, "those who stay are counted", pages_shared=PAGES, pages_sharing=PAGES)
        for v in stay:
            v.do("check", "m")
        for v in stay:
            v.quit()
        has(d, "the store is empty", pages_shared=0, segments=0)
        until(lambda: not d.store, 20, "the service manager keeps nothing")


def dies_again_at_once():
    """Killed before agents have reported, and while they do: nothing is dropped on the way, nothing counted twice."""
    with started(LONG_GRACE) as d:
        victims = victims_of(d, 3)
        has(d, "merged", pages_shared=PAGES, pages_sharing=2 * PAGES)
        for _ in range(8):
            d.restart()
        has(d, "books are back", pages_shared=PAGES, pages_sharing=2 * PAGES)
        for v in victims:
            v.do("check", "m")
            v.quit()


def full_store():
    """More segments than the manager keeps: the rest is as without one, nothing fails."""
    with started(LONG_GRACE, store_max=1) as d:
        victims = victims_of(d, 2, 3 * PAGES)
        has(d, "merged", pages_shared=3 * PAGES, pages_sharing=3 * PAGES)
        held = private_kib(victims)
        d.restart()
        assert len(d.store) == 1
        s = until(lambda: d.stats()["pages_shared"] and d.stats(), 20, "some are back")
        assert 0 < s["pages_shared"] <= PAGES, s
        assert private_kib(victims) <= held + NOISE_KIB
        for v in victims:
            v.do("check", "m")
            v.quit()


# -- what nobody may take over --------------------------------------------------------------------------------------------------

F_ADD_SEALS, SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE = 1033, 1, 2, 4, 8, 16
MAGIC = b"userksm segment\0"


def forged(n_slots=512, mode=0o400, seals=SHRINK | GROW | FUTURE_WRITE, magic=MAGIC, version=1, says=None, key=b"uid=0\n",
           key_size=None, size=None, writable=False, owner=None):
    """A segment as an earlier daemon would have left it, or one that is wrong in a single respect."""
    fd = os.memfd_create("userksm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, (n_slots + 1) * 4096 if size is None else size)
    os.pwrite(fd, b"\x5a" * 4096, 0)
    label = magic + struct.pack("=IIII", version, says or n_slots, len(key) if key_size is None else key_size, 0) + key
    os.pwrite(fd, label, os.fstat(fd).st_size - 4096)
    os.fchmod(fd, mode)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    if owner is not None:
        os.fchown(fd, owner, owner)
    if writable:
        return fd
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    return read_only


def strangers_are_refused():
    regular = tempfile.NamedTemporaryFile()
    pipe = os.pipe()
    wrong = {
        "unsealed": forged(seals=0), "sealed against growing only": forged(seals=GROW), "mode": forged(mode=0o600),
        "writable": forged(writable=True), "magic": forged(magic=b"something else\0\0"), "version": forged(version=2),
        "count": forged(says=1024), "no key": forged(key=b""), "long key": forged(key_size=3073), "odd count": forged(n_slots=100),
        "empty": forged(size=0), "short": forged(size=100),
    }
    odd = {"file": os.dup(regular.fileno()), "pipe": os.dup(pipe[0]), "nothing": os.open("/dev/null", os.O_RDONLY)}
    if os.geteuid() == 0:
        wrong["of another user"] = forged(owner=NOBODY)
    with started(LONG_GRACE) as d:
        right = forged()
        for fd in [*wrong.values(), right]:
            inode = os.fstat(fd).st_ino
            d.store[inode] = (f"segment-{inode}", os.dup(fd))
        d.restart(extra=[(f"segment-{i}", fd) for i, fd in enumerate(odd.values())] + [("stranger", pipe[1])])
        s = d.stats()
        assert s["segments_adopted"] == 1 and s["segments"] == 1, f"{s['segments_adopted']} were taken over: {d.said()}"
        assert d.said().count("not taken over") == len(wrong) + len(odd), d.said()
        assert "stranger" in d.said()
        d.heard_all()
        assert list(d.store) == [os.fstat(right).st_ino], f"the service manager still keeps {d.store}"
        held = [os.readlink(f"/proc/{d.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{d.process.pid}/fd")]
        assert sum(path.startswith("/memfd:userksm") for path in held) == 1, f"it holds what it refused: {held}"
        assert f"pipe:[{os.fstat(pipe[1]).st_ino}]" not in held, f"it holds what nobody knows: {held}"
        victims = victims_of(d, 2)
        has(d, "others merge", pages_sharing=PAGES)
        for v in victims:
            v.quit()
    for fd in [*wrong.values(), *odd.values(), right, *pipe]:
        os.close(fd)


# A client that speaks for itself: it maps nothing of what it reports.
LIAR = r"""
import ctypes, mmap, os, socket, struct, sys
path, inode, n, user = sys.argv[1], *map(int, sys.argv[2:])
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: setuid took it away
memory = mmap.mmap(-1, n * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(path)
def send(kind, body, elements=(), fds=()):
    data = body + b"".join(elements)
    socket.send_fds(s, [struct.pack("=IHHII", 16 + len(data), kind, 1, len(elements), 0) + data], fds)
fds = [os.open("/proc/self/pagemap", os.O_RDONLY), os.open("/proc/self/mem", os.O_RDONLY)]
send(1, struct.pack("=IIII16s", 4, 4096, 65530, 50, b"liar"), (), fds)
welcome, passed, _, _ = socket.recv_fds(s, 16384, 4)
assert struct.unpack_from("=H", welcome, 4)[0] == 2, welcome
report = struct.unpack_from("=II", welcome, 16)[1]
send(4, struct.pack("=II", 50, 0), [struct.pack("=QQ", address, n * 4096)])
page = address >> 12
runs = [struct.pack("=QQII", page + i, inode, 1, i) for i in range(n)]
for i in range(0, n, 128):
    send(16, bytes(8), runs[i:i + 128])
# And far outside: pages that are not registered, slots that were never written.
send(16, bytes(8), [struct.pack("=QQII", 64, inode, 64, 448), struct.pack("=QQII", page, inode ^ 1, 1, 0)])
print(report, flush=True)
sys.stdin.read()
"""


def liar(d, inode, n, user=0):
    return subprocess.Popen([sys.executable, "-c", LIAR, d.socket, str(inode), str(n), str(user)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def lies_stay_at_home():
    """Runs that are not there: in the liar's own domain they are believed until the kernel is asked; elsewhere not at all."""
    with started(LONG_GRACE) as d:
        victims = victims_of(d, 2)
        has(d, "merged", pages_shared=PAGES, pages_sharing=PAGES)
        inode = max(d.store, key=lambda inode: os.fstat(d.store[inode][1]).st_blocks)
        written = PAGES // len(d.store)  # at least, in the largest: the first pages that were ready may have gone into one of their own
        mine = liar(d, inode, PAGES)
        assert mine.stdout.readline() == "1\n", "it was not asked for runs"
        until(lambda: d.stats()["pages_adopted"] >= written, 20, "it is believed")
        has(d, "the kernel is believed more", pages_shared=PAGES, pages_sharing=PAGES)
        if os.geteuid() == 0:
            os.chmod(d.directory, 0o755)
            os.chmod(d.socket, 0o666)
            adopted = d.stats()["pages_adopted"]
            other = liar(d, inode, PAGES, NOBODY)
            assert other.stdout.readline(), "another user was not served"
            until(lambda: d.stats()["clients"] == 4, 20, "it is connected")
            d.ctl("merge", "all")
            assert d.stats()["pages_adopted"] == adopted, "another user was believed about our segment"
            other.communicate()
        mine.communicate()
        d.restart()
        has(d, "books are back", pages_shared=PAGES, pages_sharing=PAGES)
        for v in victims:
            v.do("check", "m")
            v.quit()
        grace_is_over(d)


run(crashes_cost_nothing, orderly_restart, what_nobody_maps_goes, dies_again_at_once, full_store, strangers_are_refused,
    lies_stay_at_home)
