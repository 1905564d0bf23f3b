#!/usr/bin/env python3
"""userksm-sysfs against /sys/kernel/mm/ksm itself: the same files, formats, permissions and errors, and a program written for kernel KSM
(ksm_program.c) prints the same under both. What differs is in the tables below, each with its heading in docs/sysfs.md.

Runs in a mount namespace of its own, so that no mount is left behind whatever happens."""
import errno
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import tempfile

if not os.environ.get("USERKSM_TEST_UNSHARED"):
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        print("SKIP: mounting FUSE wants root and /dev/fuse")
        sys.exit(77)
    os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], {**os.environ, "USERKSM_TEST_UNSHARED": "1"})

from harness import BUILD, Daemon, Victim, run, skip, until

sys.path.insert(0, str(pathlib.Path(__file__).parent / "workloads"))
from engines import KSM, KernelKsm

SERVER = BUILD / "ctl/sysfs/userksm-sysfs"
PROGRAM = BUILD / "tests/e2e/ksm_program"
DOCS = (pathlib.Path(__file__).parents[2] / "docs/sysfs.md").read_text()
CASES = ("merge", "merge_many", "merge_unique", "sharing_cap", "zero_pages", "zero_pages_as_others", "unmerge_by_writing", "unmergeable",
         "unmergeable_discarded", "run_2", "run_0", "prctl_merge", "prctl_fork", "prctl_exec", "forked", "counters", "prot_none",
         "proc_files", "change_cap_live")
# What ksm_program prints otherwise under userksm: case, its line, heading in docs/sysfs.md.
PROGRAM_DIFFERS = {
    "prot_none": ("frames 64", "Memory that is left alone"),
    "change_cap_live": ("max_page_sharing while pages are shared: taken", "No EBUSY"),
}
HUGE = "Numbers above 2^32 - 1"
WRITES = [b"0", b"1", b"2", b"3", b"500", b"1\n", b"1\n\n", b"2\n", b" 1", b"1 ", b"+1", b"-1", b"+-1", b"-0", b"-+1", b"+", b"-", b"", b"\n", b"\0",
          b"x", b"1x", b"0x1", b"01", b"1.5", b"1\0junk", b"1\n\0", b"4294967295", b"4294967296", b"2147483647", b"2147483648", b"-2147483648",
          b"-2147483649", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 40,
          b"y", b"n", b"Y\n", b"yes", b"no", b"on", b"off", b"ON", b"oF", b"o", b"ox", b"true", b"false", b"enable", b"disable",
          b"none", b"none\n", b"none\n\n", b"none ", b"scan-time", b"scan-time\n", b"scan", b"SCAN-TIME", b"[none] scan-time",
          b"0" * 4095 + b"1", b"0" * 4096 + b"1", b"1" + b"\n" * 5000, b"x" * 200000]


class Tree:
    """userksm-sysfs on a directory."""

    def __init__(self, daemon):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="userksm-test-tree-"))
        self.log = open(f"{self.path}.log", "ab")
        self.process = subprocess.Popen([SERVER, "--socket", daemon.socket, self.path], stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log)
        until(lambda: self.process.poll() is not None or self.is_mounted(), 20, "the tree is mounted")
        assert self.process.poll() is None, self.said()

    def said(self):
        return open(f"{self.path}.log").read()

    def is_mounted(self):
        return f" {self.path} fuse.userksm " in open("/proc/mounts").read()

    def read(self, name):
        return (self.path / name).read_text()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(30) == 0, self.said()
            assert not self.is_mounted()
        os.unlink(f"{self.path}.log")
        os.rmdir(self.path)


class Kernel(KernelKsm):
    """Kernel KSM with all its settings as they are, put back at the end; the lock is that of all tests that use it."""
    # advisor_mode sets pages_to_scan: before it.
    SETTINGS = {n: (KSM / n).read_text().strip() for n in
                ("advisor_max_cpu", "advisor_min_pages_to_scan", "advisor_max_pages_to_scan", "advisor_target_scan_time", "smart_scan",
                 "use_zero_pages", "stable_node_chains_prune_millisecs", "max_page_sharing", "merge_across_nodes", "pages_to_scan",
                 "sleep_millisecs") if (KSM / n).exists()}

    def _put_back(self):
        if (KSM / "advisor_mode").exists():
            (KSM / "advisor_mode").write_text("none")
        super()._put_back()


def result(call):
    try:
        return call()
    except OSError as e:
        return errno.errorcode[e.errno]


# -- files ------------------------------------------------------------------------------------------------------------


def the_files_are_the_kernels():
    with Daemon() as d, Tree(d) as t:
        kernel, ours = set(os.listdir(KSM)), {n for n in os.listdir(t.path) if not (t.path / n).is_dir()}
        for name in sorted(kernel ^ ours):
            print(f"# only {'the kernel' if name in kernel else 'userksm'} has {name}")
        assert not kernel - ours, "files of this kernel are missing"
        assert len(ours - kernel) <= 24 - len(kernel), "more files than any kernel has"
        for name in sorted(kernel & ours):
            k, o = os.stat(KSM / name), os.stat(t.path / name)
            for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_blocks"):
                assert getattr(k, field) == getattr(o, field), (name, field, k, o)
            a, b = (KSM / name).read_text(), t.read(name)
            assert a.endswith("\n") and b.endswith("\n") and a.count("\n") == b.count("\n") == 1, (name, a, b)
            shape = r"(\[none\] scan-time|none \[scan-time\])\n" if name == "advisor_mode" else \
                r"-?[0-9]+\n" if name == "general_profit" else r"[0-9]+\n"
            assert re.fullmatch(shape, a) and re.fullmatch(shape, b), (name, a, b)
        assert stat.S_IMODE(os.stat(t.path).st_mode) == stat.S_IMODE(os.stat(KSM).st_mode)


def reading_is_as_from_sysfs():
    with Daemon() as d, Tree(d) as t:
        (t.path / "sleep_millisecs").write_text("12345")
        for base, name, text in ((t.path, "sleep_millisecs", b"12345\n"), (KSM, "full_scans", None)):
            fd = os.open(base / name, os.O_RDONLY)
            whole = os.pread(fd, 100, 0)
            assert text in (None, whole)
            assert os.pread(fd, 2, 1) == whole[1:3] and os.pread(fd, 9, 100) == b"" and os.read(fd, 1) == whole[:1]
            assert os.read(fd, 99) == whole[1:] and os.read(fd, 99) == b""
            assert os.lseek(fd, 0, os.SEEK_END) == 4096 and os.lseek(fd, 0, os.SEEK_SET) == 0
            assert result(lambda: os.write(fd, b"1")) == "EBADF"
            os.close(fd)
        # What was set elsewhere is seen at the next read, by a descriptor that is open, too.
        fd = os.open(t.path / "pages_to_scan", os.O_RDONLY)
        for value in (100, 200):
            d.ctl("set", f"pages_to_scan={value}")
            assert os.pread(fd, 99, 0) == b"%d\n" % value
        os.close(fd)


def nothing_else_can_be_done():
    """The same calls on both, as root and as nobody; none of them changes anything."""
    def calls(p):
        names = ("full_scans", "run")
        yield from ((f"open {n} {flags:o}", lambda n=n, f=flags: os.close(os.open(p / n, f))) for n in names
                    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND))
        yield "create", lambda: os.close(os.open(p / "new", os.O_WRONLY | os.O_CREAT, 0o644))
        yield "exclusive", lambda: os.close(os.open(p / "run", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        yield "directory", lambda: os.close(os.open(p / "run", os.O_RDONLY | os.O_DIRECTORY))
        yield "mkdir", lambda: os.mkdir(p / "new")
        yield "unlink", lambda: os.unlink(p / "run")
        yield "unlink none", lambda: os.unlink(p / "new")
        yield "symlink", lambda: os.symlink("x", p / "new")
        yield "link", lambda: os.link(p / "run", p / "new")
        yield "rename", lambda: os.rename(p / "run", p / "new")
        yield "mknod", lambda: os.mknod(p / "new")
        yield "truncate", lambda: os.truncate(p / "run", 0)
        yield "open none", lambda: os.close(os.open(p / "new", os.O_RDONLY))
        yield "below a file", lambda: os.stat(p / "run" / "x")

    def outcomes(p, uid):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(write_end, repr([(what, result(call)) for what, call in calls(p)]).encode())
            os._exit(0)
        os.close(write_end)
        text = open(read_end).read()
        assert os.waitpid(pid, 0)[1] == 0
        return eval(text)

    with Daemon() as d, Tree(d) as t:
        os.chmod(t.path.parent, os.stat(t.path.parent).st_mode | 0o1)
        for uid in (0, 65534):
            kernel, ours = outcomes(KSM, uid), outcomes(t.path, uid)
            for k, o in zip(kernel, ours):
                assert k == o, f"uid {uid}: kernel {k}, ours {o}"
        print(f"# {len(ours)} calls by root and by nobody")


def writes_fail_alike():
    """Each value to each file: what write returns, and what the file says then."""
    def outcomes(base):
        found = {}
        for name in sorted(os.listdir(KSM)):
            if not os.stat(KSM / name).st_mode & 0o200:
                continue
            fd = os.open(base / name, os.O_WRONLY)
            for value in WRITES:
                found[name, value] = result(lambda: os.write(fd, value)), (base / name).read_text()
            found[name, "at an offset"] = result(lambda: os.pwrite(fd, b"1", 100)), (base / name).read_text()
            os.close(fd)
        # The kernel takes no pages_to_scan while the advisor sets it.
        for name, value in (("advisor_mode", "scan-time"), ("pages_to_scan", "700"), ("advisor_min_pages_to_scan", "600"),
                            ("advisor_mode", "none"), ("pages_to_scan", "700"), ("run", "0"), ("max_page_sharing", "256")):
            found[name, value, "in turn"] = result(lambda: (base / name).write_text(value)), (base / name).read_text()
        return found

    with Kernel():
        kernel = outcomes(KSM)
    with Daemon() as d, Tree(d) as t:
        for name, value in Kernel.SETTINGS.items():
            (t.path / name).write_text(value)
        ours = outcomes(t.path)
    differ, huge = [], set()
    for key, k in kernel.items():
        if k == ours[key]:
            huge.discard(key[0])
            continue
        # Documented: what does not fit is refused; until the next value that both take the files say different things.
        if key[0].startswith("advisor_") and (k[0] != ours[key][0] and ours[key][0] == "EINVAL" and int(key[1]) > 4294967295):
            huge.add(key[0])
        elif not (key[0] in huge and k[0] == ours[key][0]):
            differ.append((key, k, ours[key]))
    assert f"## {HUGE}" in DOCS
    assert not differ, "\n".join(map(repr, differ[:20]))
    print(f"# {len(kernel)} writes, {sum(1 for r, _ in kernel.values() if isinstance(r, str))} of them errors")


# -- programs ---------------------------------------------------------------------------------------------------------


def program(case, *prefix, **environment):
    r = subprocess.run([*prefix, PROGRAM, case], capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL,
                       env={**os.environ, "USERKSM_SOCKET": "/nonexistent/userksm.sock", **environment})
    return r.stdout + (f"exit status {r.returncode}\n{r.stderr}" if r.returncode else "")


def mergeable_processes():
    found = set()
    for p in pathlib.Path("/proc").glob("[0-9]*/ksm_stat"):
        try:
            text = p.read_text()
        except OSError:
            continue
        if "ksm_mergeable: yes" in text or re.search(r"^ksm_rmap_items [1-9]", text, re.M):
            found.add(int(p.parent.name))
    return found


def programs_for_kernel_ksm_run():
    """The same binary under both, with a private daemon; as the kernel's own tests do, it waits for full scans. Kernel KSM's numbers are those of
    all processes: while others have mergeable memory (QEMU), what it prints alone, as noted in ksm_program.txt, stands for it."""
    noted = dict(re.findall(r"^== (\w+)\n(.*?)(?=^==|\Z)", (pathlib.Path(__file__).parent / "ksm_program.txt").read_text(), re.M | re.S))
    wrong = []
    with Kernel():
        for case in CASES:
            for _ in range(5):
                others = mergeable_processes()
                kernel = program(case)
                others |= mergeable_processes()
                if kernel == noted[case] or others:
                    break  # else one that came and went
            if kernel != noted[case] and others:
                print(f"# {case} under kernel KSM beside processes {sorted(others)}: not compared")
            elif kernel != noted[case]:
                wrong.append(f"{case}: noted\n{noted[case]}the kernel says\n{kernel}")
    for case in CASES:
        ours = program(case, BUILD / "ctl/ksmctl", "run", "--quiet", "--sysfs", "--")
        expected = noted[case]
        if case in PROGRAM_DIFFERS:
            line, heading = PROGRAM_DIFFERS[case]
            assert f"## {heading}" in DOCS, heading
            assert expected != line + "\n", f"{case} differs no more: take it off the list"
            expected = line + "\n"
        if ours != expected:
            wrong.append(f"{case}: expected\n{expected}got\n{ours}")
    assert not wrong, "\n".join(wrong)
    print(f"# {len(CASES)} cases, {len(PROGRAM_DIFFERS)} of them as docs/sysfs.md says, the others as the kernel's")


# -- life and death ---------------------------------------------------------------------------------------------------


def the_daemon_may_go_and_come():
    with Daemon() as d, Tree(d) as t:
        assert t.read("run") == "1\n"
        d.stop()
        for _ in range(3):
            assert result(lambda: t.read("run")) == "EIO"
            assert result(lambda: (t.path / "run").write_text("1")) == "EIO"
        assert result(lambda: os.listdir(t.path) and os.stat(t.path / "run").st_size) == 4096
        d.start()
        assert t.read("run") == "1\n"
        (t.path / "pages_to_scan").write_text("77\n")
        assert "77" in d.ctl("get", "pages_to_scan").stdout
        # Between two requests: the old connection tells only when it is used.
        d.stop()
        d.start()
        assert t.read("pages_to_scan") != "77\n"
        said = t.said()
        assert said.count("no daemon at") == 1 and said.count("is back (pid") == 1, said


def a_killed_server_leaves_no_mount():
    with Daemon() as d:
        with Tree(d) as t:
            t.process.kill()
            t.process.wait(20)
            until(lambda: not t.is_mounted(), 20, "the mount is gone")


def run_2_waits_for_what_can_be_restored():
    with Daemon() as d, Tree(d) as t:
        victims = [Victim(d) for _ in range(2)]
        for v in victims:
            v.do("map", "a", 64)
            v.do("fill", "a", 0, 64, 1)
        until(lambda: int(t.read("pages_sharing")) >= 64, 60, "merged")
        os.kill(victims[0].pid, signal.SIGSTOP)
        handler = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))"
        write = "os.write(os.open(sys.argv[1], os.O_WRONLY), b'2')"
        command = [sys.executable, "-c", f"import os, signal, sys; {handler}; print(flush=True); {write}", t.path / "run"]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: t.read("run") == "2\n", 20, "reading goes on meanwhile")
        said = writer.communicate(timeout=60)[1]
        assert "Errno 16" in said and "could not be restored" in t.said(), (said, t.said())
        # A signal ends the wait.
        (t.path / "run").write_text("1")
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: t.read("run") == "2\n", 20, "it waits")
        writer.send_signal(signal.SIGTERM)
        writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGTERM, writer.returncode
        # So does one that the program handles: it has its answer before the wait is over.
        (t.path / "run").write_text("1")
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        writer.stdout.readline()  # it has its handler
        until(lambda: t.read("run") == "2\n", 20, "it waits")
        writer.send_signal(signal.SIGUSR1)
        writer.communicate(timeout=60)
        assert writer.returncode == 7 and t.said().count("could not be restored") == 1, (writer.returncode, t.said())
        os.kill(victims[0].pid, signal.SIGCONT)
        (t.path / "run").write_text("2")
        assert (t.read("pages_shared"), t.read("pages_sharing")) == ("0\n", "0\n")
        for v in victims:
            v.quit()


def a_server_ends_with_files_open():
    with Daemon() as d:
        with Tree(d) as t:
            fd = os.open(t.path / "run", os.O_RDWR)
            assert os.pread(fd, 9, 0) == b"1\n"
        assert result(lambda: os.pread(fd, 9, 0)) in ("ENOTCONN", "ECONNABORTED")
        assert result(lambda: os.write(fd, b"1")) in ("ENOTCONN", "ECONNABORTED")
        result(lambda: os.close(fd))  # flushes, which nobody answers
        with Tree(d) as t:
            assert t.read("run") == "1\n"


def each_domain_has_a_directory():
    """Three processes of two users: sums add up to the totals and to what the kernel maps; a directory goes with its domain."""
    with Daemon() as d, Tree(d) as t:
        os.chmod(d.directory, 0o755)
        os.chmod(d.socket, 0o666)
        assert not list(t.path.glob("domain*"))
        os.chmod(t.path.parent, os.stat(t.path.parent).st_mode | 0o1)
        victims = [Victim(d, user=u, group=u) for u in (1000, 1001, 1001)]
        for v in victims:
            v.do("map", "a", 64)
            v.do("fill", "a", 0, 64, 1)
        until(lambda: t.read("pages_sharing") == "64\n", 60, "the pair is merged")

        def sums():
            return {(p / "key").read_text().split()[0]: {f.name: f.read_text() for f in p.iterdir()} for p in t.path.glob("domain*")}

        found = sums()
        assert set(found) == {"uid=1000", "uid=1001"}, found
        one, two = found["uid=1000"], found["uid=1001"]
        assert (one["processes"], one["pages_shared"], one["pages_sharing"]) == ("1\n", "0\n", "0\n"), one
        assert (two["processes"], two["pages_shared"], two["pages_sharing"], two["registered_pages"]) == ("2\n", "64\n", "64\n", "128\n")
        for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages"):
            until(lambda: int(t.read(name)) == sum(int(s[name]) for s in sums().values()), 20, f"{name} adds up")
        directories = sorted(t.path.glob("domain*"))
        for p in directories:
            assert stat.S_IMODE(p.stat().st_mode) == 0o500 and stat.S_IMODE((p / "key").stat().st_mode) == 0o400
            assert result(lambda: os.close(os.open(p / "pages_shared", os.O_WRONLY))) == "EACCES"
            assert result(lambda: os.stat(t.path / p.name.replace("domain", "domain0"))) == "ENOENT"
        # What /proc says of a process is its user's to read, here as there.
        files = t.path / "process" / str(victims[1].pid)
        assert "process" not in os.listdir(t.path) and (files / "ksm_merging_pages").read_text() == "64\n"
        said = (files / "ksm_stat").read_text()
        assert "\nksm_merging_pages 64\n" in said and said.endswith("\nksm_merge_any: no\nksm_mergeable: yes\n"), said
        mine = pathlib.Path("/proc/self/ksm_stat").read_text()
        assert not mine.endswith("ksm_mergeable: no\n") or re.sub(r"\d+", "", mine) == re.sub(r"\d+", "", said).replace("yes", "no"), (mine, said)
        assert result(lambda: os.stat(t.path / "process" / "0")) == result(lambda: os.stat(files / "x")) == "ENOENT"
        assert (t.path / "process" / str(os.getpid()) / "ksm_merging_pages").read_text() == "0\n"
        readers = {u: subprocess.run(["setpriv", f"--reuid={u}", f"--regid={u}", "--clear-groups", "cat", files / "ksm_merging_pages"],
                                     capture_output=True, text=True) for u in (1001, 1000)}
        assert readers[1001].stdout == "64\n" and "denied" in readers[1000].stderr, readers
        fd = os.open(directories[0] / "key", os.O_RDONLY)
        for v in victims:
            v.quit()
        until(lambda: not list(t.path.glob("domain*")), 60, "the domains are gone")
        assert result(lambda: os.pread(fd, 9, 0)) == "ENOENT" and result(lambda: os.stat(directories[0])) == "ENOENT"
        os.close(fd)


def servers():
    """userksm-sysfs processes of this build that serve a mount which was handed over."""
    found = set()
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(p / "exe") == str(SERVER) and b"--handed" in (p / "cmdline").read_bytes():
                found.add(int(p.name))
        except OSError:
            pass
    return found


def the_tree_lives_as_long_as_its_namespace():
    before = servers()
    environment = {**os.environ, "USERKSM_SOCKET": "/nonexistent/userksm.sock"}
    command = [BUILD / "ctl/ksmctl", "run", "-q", "--sysfs", "--"]
    # A process that the command leaves behind keeps the tree.
    r = subprocess.run([*command, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!; cat /sys/kernel/mm/ksm/run"], env=environment,
                       capture_output=True, text=True, timeout=60)
    pid, value = r.stdout.split()
    assert (r.returncode, r.stderr, value) == (0, "", "1"), r
    assert " /sys/kernel/mm/ksm fuse" not in open("/proc/mounts").read(), "seen from outside"
    inside = ["nsenter", "--mount", "--target", pid]
    assert subprocess.run([*inside, "cat", "/sys/kernel/mm/ksm/run"], capture_output=True, timeout=20).stdout == b"1\n"
    assert len(servers() - before) == 1
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: not servers() - before, 20, "the server has ended with the namespace")
    # Nothing is left of a command that cannot be executed.
    r = subprocess.run([*command, "/nonexistent/x"], env=environment, capture_output=True, text=True, timeout=60)
    assert r.returncode == 127, r
    until(lambda: not servers() - before, 20, "the server has ended")
    # With a daemon that runs, its values are seen, and merging is only what is asked for.
    with Daemon() as d:
        d.ctl("set", "pages_to_scan=4321")
        r = subprocess.run([BUILD / "ctl/ksmctl", "--socket", d.socket, "run", "-q", "--sysfs", "--", "sh", "-c",
                            "cat /sys/kernel/mm/ksm/pages_to_scan; echo ${USERKSM_MERGE_ANY-unset}"], capture_output=True, text=True,
                           timeout=60)
        assert r.stdout == "4321\nunset\n", r


if not (KSM / "run").exists():
    skip("this kernel is without KSM: nothing to compare with")
TESTS = [the_files_are_the_kernels, reading_is_as_from_sysfs, nothing_else_can_be_done, writes_fail_alike, the_daemon_may_go_and_come,
         a_killed_server_leaves_no_mount, a_server_ends_with_files_open, each_domain_has_a_directory,
         run_2_waits_for_what_can_be_restored, the_tree_lives_as_long_as_its_namespace,
         programs_for_kernel_ksm_run]
run(*(c for c in TESTS if not sys.argv[1:] or c.__name__ in sys.argv[1:]))
