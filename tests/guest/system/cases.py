"""The cases, each of which finds userksm installed, its socket and service running, and no client, and says so of the next."""
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import threading
import time

from manager import (DATA_BYTES, SERVICE, SOCKET, UNITS, Redis, active, ctl, drop_in, main_pid, processes, prop, rollup_bytes, sh,
                     stats, until)

SOCKET_PATH = pathlib.Path("/run/userksm/userksm.sock")
RULES = pathlib.Path("/etc/userksm/rules.d")
DROP_IN = pathlib.Path("/usr/share/doc/userksm/userksm-preload.conf")
EXPOSURE_MAX = 2.0
# What the documentation of operations tells a service to have.
CLIENT = "SupplementaryGroups=userksm\nEnvironment=LD_PRELOAD=libuserksm-preload.so USERKSM_MERGE_ANY=1\n"
ROOT_REDIS = f"""[Service]
Type=notify
ExecStart=redis-server /etc/redis/redis-%s.conf --supervised systemd --daemonize no
RuntimeDirectory=redis-%s
{CLIENT}"""
# Of what two hold alike one copy is saved; the rest of a server's memory differs by more than the data.
SAVED_MIN = 0.9
DATA_PAGES = DATA_BYTES // 4096
# A server's own doings, buffers of answers among them; below what it would be if a part of the savings went.
NOISE_BYTES = DATA_BYTES // 10
NOISE_PAGES = DATA_PAGES // 20
WATCH_SEC = 0.1
CRASHES = 3
EX_NOPERM = 77
# A loop that hangs is noticed after this time; the unit's own 30 s would only take longer. An emulated one that others hold up
# for seconds must not pass for hanging.
WATCHDOG_SEC = 10


def install(until_failure=False):
    """As docs/operations.md says, from the staged `meson install` on; what it made is checked by the case. Returns status and output
    of the last command, which may be one that failed."""
    if pathlib.Path("/staged").exists():
        shutil.copytree("/staged", "/", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree("/staged")
    text = pathlib.Path("/usr/share/doc/userksm/operations.md").read_text()
    block = re.search(r"## Installing\n\n((?:    .*\n)+)", text)[1]
    commands = [line.strip() for line in block.splitlines() if not line.strip().startswith("meson ")]
    assert len(commands) >= 4, block
    for command in commands:
        print("#", command)
        last = sh("bash", "-euo", "pipefail", "-c", command, check=False)
        print(last.stdout)
        assert until_failure or last.returncode == 0, last
        if last.returncode:
            break
    return last.returncode, last.stdout


def installed():
    install()
    user = pwd.getpwnam("userksm")
    device, socket, directory = (os.stat(path) for path in ("/dev/userfaultfd", SOCKET_PATH, SOCKET_PATH.parent))
    assert (device.st_gid, device.st_mode & 0o777) == (user.pw_gid, 0o660), "the udev rule did not apply"
    assert (socket.st_uid, socket.st_gid, socket.st_mode & 0o777) == (0, user.pw_gid, 0o660), socket
    assert directory.st_mode & 0o777 == 0o755, directory
    assert open("/proc/sys/vm/max_map_count").read() == "262144\n"
    for unit in (SERVICE, SOCKET):
        assert active(unit) and sh("systemctl", "is-enabled", unit) == "enabled\n", unit
    sh("ksmctl", "check")
    # Files of packages are named below /lib, which is a link; that is nothing about our units.
    remarks = [line for line in sh("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET).splitlines() if "userksm" in line]
    assert not remarks, remarks
    assert sh("systemctl", "is-system-running", "--wait") == "running\n"
    warnings = sh("journalctl", "-q", "--no-pager", "-p", "warning", "-u", SERVICE, "-u", SOCKET)
    assert not warnings, warnings
    print(f"daemon: {prop(SERVICE, 'StatusText')}, {int(prop(SERVICE, 'MemoryCurrent')) >> 10} KiB")


def sandboxed():
    """The service as its own user, without capabilities, in what its directives make of the system."""
    pid = main_pid()
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status") if ":\t" in line)
    assert status["Uid"].split() == [str(pwd.getpwnam("userksm").pw_uid)] * 4, status["Uid"]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, f"{kind} {status[kind]}"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1\n", "2\n"), status
    mounts = [line.split() for line in open(f"/proc/{pid}/mountinfo")]
    options = {m[4]: m[5].split(",") for m in mounts}
    assert "ro" in options["/"] and "ro" in options["/sys/fs/cgroup"] and "ro" in options["/proc/sys"], options
    limits = open(f"/proc/{pid}/limits").read()
    assert re.search(r"Max open files +524288 +524288", limits), limits
    assert re.search(r"Max core file size +0 +0", limits), f"a core of it would hold memory of its clients: {limits}"
    assert open(f"/proc/{pid}/oom_score_adj").read() == "-500\n"
    group = pathlib.Path("/sys/fs/cgroup" + prop(SERVICE, "ControlGroup"))
    total = int(re.search(r"MemTotal: +(\d+)", open("/proc/meminfo").read())[1]) << 10
    assert abs(int((group / "memory.max").read_text()) / total - 0.75) < 0.01
    assert (group / "memory.swap.max").read_text() == "0\n"
    assert (group / "pids.max").read_text() == "128\n"
    answer = sh("systemd-analyze", "security", "--no-pager", SERVICE)
    exposure = float(re.search(r"Overall exposure level for userksmd.service: ([0-9.]+)", answer)[1])
    assert exposure <= EXPOSURE_MAX, answer
    print(f"exposure {exposure}")


def socket_activated():
    """The socket listens alone; who connects starts the daemon. Only members of the group may."""
    sh("systemctl", "stop", SERVICE)
    assert not active(SERVICE) and active(SOCKET) and SOCKET_PATH.is_socket()
    somebody = {"user": "redis", "group": "redis", "capture_output": True, "text": True}
    refused = subprocess.run(["ksmctl", "stats"], extra_groups=[], **somebody)
    assert refused.returncode == EX_NOPERM and not active(SERVICE), refused
    answer = subprocess.run(["ksmctl", "stats"], extra_groups=["userksm"], **somebody)
    assert answer.returncode == 0 and "pages_sharing 0" in answer.stdout, answer
    assert active(SERVICE)
    # What concerns everybody is root's and the daemon's user's.
    for change in (["set", "run=0"], ["merge", "all"], ["unmerge", "all"]):
        denied = subprocess.run(["ksmctl", *change], extra_groups=["userksm"], **somebody)
        assert denied.returncode == EX_NOPERM, denied
        sh("ksmctl", *change)
    sh("setpriv", "--reuid=userksm", "--regid=userksm", "--clear-groups", "ksmctl", "set", "run=1")


def pair(unit="redis-server", instances=("a", "b")):
    """Two servers with the same data, merged; returns them."""
    servers = [Redis(unit, instance) for instance in instances]
    for s in servers:
        s.fill()
    until(lambda: len(processes()) >= len(servers), "the servers are connected")
    settle_merged(servers)
    return servers


def settle_merged(servers):
    def merged():
        ctl("merge", "all")
        return all(s.merged_bytes() >= SAVED_MIN * DATA_BYTES for s in servers)
    until(merged, "the servers' data are merged")


def services_share():
    """Debian's own, hardened template of redis, with the drop-in that the documentation gives."""
    drop_in("redis-server@.service", f"[Service]\n{CLIENT}")
    ctl("set", "run=0")
    servers = [Redis("redis-server", instance) for instance in ("a", "b")]
    for s in servers:
        s.fill()
    before = total_bytes(s.pid for s in servers)
    ctl("set", "run=1")
    settle_merged(servers)
    saved = before - total_bytes(s.pid for s in servers)
    print(f"Pss of two with {DATA_BYTES >> 20} MiB each: {before >> 10} KiB, {saved >> 10} KiB less when merged")
    assert saved >= SAVED_MIN * DATA_BYTES
    assert servers[0].domain() == servers[1].domain()
    for s in servers:
        s.check()
        state = processes()[s.pid]["state"]
        assert state == "active", state


def templates_of_root():
    """Instances of one template share, another unit of root's does not, whatever it holds."""
    (UNITS / "cache@.service").write_text(ROOT_REDIS % ("%i", "%i"))
    (UNITS / "other.service").write_text(ROOT_REDIS % ("other", "other"))
    sh("systemctl", "daemon-reload")
    first, second = pair("cache", ("1", "2"))
    other = Redis("other", None)
    other.fill()
    until(lambda: other.pid in processes(), "the other is connected")
    ctl("merge", "all")
    assert first.domain() == second.domain() != other.domain()
    assert other.merged_bytes() < NOISE_BYTES, other.merged_bytes()  # what it holds twice itself
    for s in (first, second, other):
        s.check()


def ksmctl_run_in_a_unit():
    """`ksmctl run` in front of ExecStart=."""
    (UNITS / "cache@.service").write_text(
        "[Service]\nType=notify\nNotifyAccess=all\nUser=redis\nRuntimeDirectory=redis-%i\nSupplementaryGroups=userksm\n"
        "ExecStart=ksmctl run --quiet redis-server /etc/redis/redis-%i.conf --supervised systemd --daemonize no\n")
    sh("systemctl", "daemon-reload")
    servers = [Redis("cache", instance) for instance in ("1", "2")]
    for s in servers:
        s.fill()

    def merged():
        ctl("merge", "all")
        return sum(p["merged_bytes"] >= SAVED_MIN * DATA_BYTES for p in processes().values()) == 2
    until(merged, "both are merged")
    for s in servers:
        s.check()
        sh("systemctl", "stop", s.unit)
        assert prop(s.unit, "Result") == "success", prop(s.unit, "Result")


def chosen_by_rules():
    """Both units have the shim, by the drop-in that is installed, and nothing else; a rule chooses one of them."""
    RULES.mkdir(parents=True, exist_ok=True)
    try:
        (RULES / "50-redis.conf").write_text("merge-any unit=redis-server@*.service\n")
        said = sh("ksmctl", "check")
        assert "1 in 1 files of /etc/userksm/rules.d, 0 problems" in said, said
        drop_in("redis-server@.service", DROP_IN.read_text())
        (UNITS / "other.service").write_text((ROOT_REDIS % ("other", "other")).replace(CLIENT, ""))
        drop_in("other.service", DROP_IN.read_text())
        servers = pair()
        other = Redis("other", None)
        other.fill()
        assert "libuserksm-preload" in pathlib.Path(f"/proc/{other.pid}/maps").read_text()
        ctl("merge", "all")
        assert set(processes()) == {s.pid for s in servers}, (processes(), other.pid)
        for s in servers:
            s.check()
            lines = sh("ksmctl", "status", s.pid).splitlines()
            assert f"unit {s.unit}" in lines and "ksm_merge_any: yes" in lines, lines
        other.check()
    finally:
        shutil.rmtree(RULES)


class Survives:
    """Two merged servers of Debian's template, and what they hold for themselves, watched all the while. On leaving: they are the
    same processes, with the same bytes, connected again, and never held more than before: what was saved stayed saved."""

    def __enter__(self):
        drop_in("redis-server@.service", f"[Service]\n{CLIENT}")
        self.servers = pair()
        self.pids = [s.pid for s in self.servers]
        self.before, self.total = stats(), total_bytes(self.pids)
        self.peak = self.own = rollup_bytes(self.pids, "Anonymous")
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def watch(self):
        while not self.over.wait(WATCH_SEC):
            self.peak = max(self.peak, rollup_bytes(self.pids, "Anonymous"))

    def holds(self, connected=True):
        for s in self.servers:
            s.check()
        assert [s.pid for s in self.servers] == self.pids
        if connected:
            until(lambda: set(self.pids) <= set(processes()), "the servers are connected again")
        total = total_bytes(self.pids)
        assert total - self.total < NOISE_BYTES, f"Pss was {self.total >> 10} KiB, is {total >> 10} KiB"
        assert self.peak - self.own < NOISE_BYTES, f"private memory was {self.own >> 10} KiB, at times {self.peak >> 10} KiB"

    def known_again(self):
        """systemd kept the segments, and the new daemon's books are what the old one's were."""
        self.holds()

        def back():
            now = stats()
            return now if all(abs(now[k] - self.before[k]) <= NOISE_PAGES for k in ("pages_shared", "pages_sharing")) else None
        now = until(back, f"the books are back at {self.before['pages_sharing']} pages sharing")
        assert now["segments_adopted"] >= self.before["segments"], now  # more, when merging had gone on
        until(lambda: stored_fds() == stats()["segments"], "one stored fd for each segment")
        print(f"pages sharing {self.before['pages_sharing']} -> {now['pages_sharing']}, segments {self.before['segments']} -> "
              f"{now['segments']}, adopted {now['segments_adopted']}; charged to the unit "
              f"{int(prop(SERVICE, 'MemoryCurrent')) >> 10} KiB")

    def joined(self, instance="c"):
        """Another server with the same data shares what the old daemon had published."""
        before = stats()
        newcomer = Redis("redis-server", instance)
        newcomer.fill()
        settle_merged([newcomer])
        newcomer.check()
        now = stats()
        assert now["pages_shared"] - before["pages_shared"] <= NOISE_PAGES, f"{before} {now}"
        assert now["pages_sharing"] - before["pages_sharing"] >= SAVED_MIN * DATA_PAGES, f"{before} {now}"

    def __exit__(self, kind, *_):
        if kind is None:
            self.holds()
        self.over.set()
        self.watcher.join()


def total_bytes(pids):
    """What the processes hold, shared pages once; the daemon maps those that it is still filling, and bears its part."""
    return rollup_bytes(pids) + rollup_bytes([main_pid()], "Pss_Shmem")


def stored_fds():
    return int(prop(SERVICE, "NFileDescriptorStore"))


def another_daemon(pid):
    until(lambda: active(SERVICE) and main_pid() not in (0, pid), "another daemon runs")


def watchdog():
    """A daemon that hangs is ended and started again."""
    drop_in(SERVICE, f"[Service]\nWatchdogSec={WATCHDOG_SEC}\n")
    sh("systemctl", "restart", SERVICE)
    with Survives() as clients:
        pid = main_pid()
        os.kill(pid, signal.SIGSTOP)
        another_daemon(pid)
        assert "watchdog" in sh("journalctl", "-q", "--no-pager", "-u", SERVICE).lower()
        assert int(prop(SERVICE, "NRestarts")) == 1
        assert not list(pathlib.Path("/").glob("core*"))
        clients.known_again()


def killed():
    with Survives() as clients:
        for i in range(CRASHES):
            pid = main_pid()
            os.kill(pid, signal.SIGKILL)
            another_daemon(pid)
            assert int(prop(SERVICE, "NRestarts")) == i + 1
            clients.known_again()
        clients.joined()


def restarted():
    with Survives() as clients:
        for _ in range(CRASHES):
            pid = main_pid()
            sh("systemctl", "restart", SERVICE)
            assert main_pid() != pid and prop(SERVICE, "Result") == "success"
            clients.known_again()
        clients.joined()


def upgraded():
    """Another file in place of the daemon's program, and `systemctl restart`."""
    with Survives() as clients:
        program = pathlib.Path("/usr/sbin/userksmd")
        new = program.with_suffix(".new")
        shutil.copy2(program, new)
        new.rename(program)
        sh("systemctl", "restart", SERVICE)
        assert os.stat(f"/proc/{main_pid()}/exe").st_ino == program.stat().st_ino
        clients.known_again()
        clients.joined()


def stores_no_longer_than_needed():
    """systemd keeps a segment as long as a process maps it, those that end while there is no daemon included."""
    drop_in("redis-server@.service", f"[Service]\n{CLIENT}")
    servers = pair()
    assert stored_fds() == stats()["segments"] > 0
    sh("systemctl", "stop", *(s.unit for s in servers))
    until(lambda: stored_fds() == 0, "nothing is stored for processes that have ended")
    servers = pair()
    # Not by itself: who connects starts it.
    pid = main_pid()
    drop_in(SERVICE, "[Service]\nRestartSec=infinity\n")
    os.kill(pid, signal.SIGKILL)
    sh("systemctl", "stop", *(s.unit for s in servers))
    assert stored_fds() > 0
    sh("systemctl", "restart", SERVICE)
    assert stats()["segments_adopted"] == stored_fds() > 0
    ctl("set", "adopt_grace_millisecs=0")
    until(lambda: stored_fds() == 0, "nothing is stored after the grace")
    assert stats()["segments"] == 0


def reloaded():
    with Survives():
        pid = main_pid()
        pathlib.Path("/etc/userksm").mkdir(exist_ok=True)
        pathlib.Path("/etc/userksm/userksmd.conf").write_text("[tunables]\nmax_page_sharing = 123\n")
        sh("systemctl", "reload", SERVICE)
        until(lambda: ctl("get", "max_page_sharing") == "123\n", "the new value")
        assert main_pid() == pid and active(SERVICE)
        pathlib.Path("/etc/userksm/userksmd.conf").write_text("[tunables]\nmax_page_sharing = much\n")
        sh("systemctl", "reload", SERVICE)
        assert ctl("get", "max_page_sharing") == "123\n" and main_pid() == pid and active(SERVICE)
    pathlib.Path("/etc/userksm/userksmd.conf").unlink()


def stopped():
    """Stopped for good: systemd 252 lets go of what it stored, processes keep theirs. Started again: what was merged is not known
    to the new daemon, new processes merge among themselves."""
    with Survives() as clients:
        sh("systemctl", "stop", SOCKET, SERVICE)
        assert prop(SERVICE, "Result") == "success" and not SOCKET_PATH.exists() and stored_fds() == 0
        clients.holds(connected=False)
        sh("systemctl", "start", SOCKET)
        # Agents connect by themselves, which is what starts the service.
        until(lambda: active(SERVICE), "an agent started the service")
        clients.holds()
        assert stats()["segments_adopted"] == 0
        pair(instances=("c", "d"))


def given_up():
    """A daemon that cannot start at all: systemd tries again until its limit, lets go of the store and stays away. Nobody else
    notices; once it can start, everybody comes back by himself."""
    with Survives() as clients:
        drop_in(SERVICE, "[Unit]\nStartLimitIntervalSec=600\n[Service]\nExecStart=\nExecStart=/bin/false\n")
        began = time.monotonic()
        os.kill(main_pid(), signal.SIGKILL)
        until(lambda: prop(SERVICE, "ActiveState") == "failed" and prop(SERVICE, "SubState") == "failed" and stored_fds() == 0,
              "systemd gives up")
        gave_up = time.monotonic()
        clients.holds(connected=False)
        shutil.rmtree(UNITS / f"{SERVICE}.d")
        sh("systemctl", "daemon-reload")
        sh("systemctl", "reset-failed", SERVICE, SOCKET)
        sh("systemctl", "start", SOCKET)
        started = time.monotonic()
        until(lambda: active(SERVICE), "an agent started the service")
        clients.holds()
        print(f"given up after {gave_up - began:.0f} s; with the socket back, all are connected after {time.monotonic() - started:.1f} s")
        pair(instances=("c", "d"))


def memory_events():
    text = pathlib.Path("/sys/fs/cgroup" + prop(SERVICE, "ControlGroup"), "memory.events").read_text()
    return {name: int(n) for name, n in (line.split() for line in text.splitlines())}


def set_memory_max(value):
    sh("systemctl", "set-property", "--runtime", SERVICE, f"MemoryMax={value}")


def memory_limit():
    """MemoryMax= of which too little is left: nothing new is shared, the status says why, the daemon lives. With more it goes on."""
    with Survives() as clients:
        pid, limit = main_pid(), int(prop(SERVICE, "MemoryCurrent")) + (4 << 20)
        set_memory_max(limit)
        try:
            more = [Redis("redis-server", "c"), Redis("redis-server", "d")]
            for s in more:
                s.fill(seed=2)
            until(lambda: ctl("merge", "all", check=False) and "memory limit of the daemon's control group" in ctl("status"),
                  "the status says why")
            for s in more:
                s.check(seed=2)
                assert s.merged_bytes() < DATA_BYTES // 2, s.merged_bytes()
            clients.holds()
            print(f"limit {limit >> 10} KiB, {stats()['memory_left_bytes'] >> 10} KiB left; {memory_events()}")
            assert main_pid() == pid and memory_events()["oom_kill"] == 0
        finally:
            set_memory_max("75%")
        settle_merged(more)
        for s in more:
            s.check(seed=2)
        assert main_pid() == pid and "control group" not in ctl("status")


def fast_read():
    """The drop-in that gives CAP_SYS_PTRACE, and nothing else."""
    text = pathlib.Path("/usr/share/doc/userksm/userksmd-fast-read.conf").read_text()
    drop_in(SERVICE, text)
    sh("systemctl", "restart", SERVICE)
    status = open(f"/proc/{main_pid()}/status").read()
    assert int(re.search(r"CapEff:\s*(\S+)", status)[1], 16) == 1 << 19, status
    with Survives():
        pass


def reset():
    """For the next case."""
    units = sh("systemctl", "list-units", "--plain", "--no-legend", "--all", "redis-server@*", "cache@*", "other.service")
    names = [line.split()[0] for line in units.splitlines()]
    subprocess.run(["systemctl", "kill", "-s", "KILL", *names], stderr=subprocess.DEVNULL)
    subprocess.run(["systemctl", "stop", *names, SERVICE], stderr=subprocess.DEVNULL)
    for unit in ("redis-server@.service", "other.service", SERVICE):
        shutil.rmtree(UNITS / f"{unit}.d", ignore_errors=True)
    for unit in ("cache@.service", "other.service"):
        (UNITS / unit).unlink(missing_ok=True)
    sh("systemctl", "daemon-reload")
    subprocess.run(["systemctl", "reset-failed"])
    sh("systemctl", "start", SOCKET, SERVICE)


CASES = [installed, sandboxed, socket_activated, services_share, templates_of_root, ksmctl_run_in_a_unit, chosen_by_rules, watchdog, killed, restarted,
         upgraded, stores_no_longer_than_needed, reloaded, stopped, given_up, memory_limit, fast_read]
