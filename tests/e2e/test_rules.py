#!/usr/bin/env python3
"""Programs chosen by the administrator's rules: which say what, against the environment, in whose files, system-wide, in setuid programs,
without /proc. Each program says of itself whether it is in merge-any mode and whether it has other threads: the agent's."""
import contextlib
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile

from harness import BUILD, Daemon, run, skip, until
from test_shim_support import SHIM

# Debian's, not one that runs from a home directory: other users must reach it.
PYTHON = os.path.realpath("/usr/bin/python3")
STATE = "import ctypes, os; print(ctypes.CDLL(None).prctl(68, 0, 0, 0, 0), int(os.path.exists('/proc/self') and len(os.listdir('/proc/self/task')) > 1))"
MERGE_ANY, ADVICE_ONLY = "1 1", "0 0"
NOBODY = 65534


@contextlib.contextmanager
def rules(**files):
    """A directory of rules; a name a=text makes a.conf."""
    with tempfile.TemporaryDirectory(prefix="userksm-test-") as path:
        os.chmod(path, 0o755)
        for name, text in files.items():
            pathlib.Path(path, name + ".conf").write_text(text)
            os.chmod(pathlib.Path(path, name + ".conf"), 0o644)
        yield path


def command(*words, directory=None, preload=SHIM, user=None, **env):
    environment = {"PATH": os.environ["PATH"], "USERKSM_SOCKET": "/nonexistent/sock", **env}
    if preload:
        environment["LD_PRELOAD"] = str(preload)
    if directory is not None:
        environment["USERKSM_RULES_DIR"] = directory
    r = subprocess.run([str(w) for w in words], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
                       user=user, group=user, extra_groups=None if user is None else [])
    assert r.returncode == 0 and r.stderr == "", (words, r)
    return r.stdout.strip()


def state(directory, **options):
    return command(PYTHON, "-c", STATE, directory=directory, **options)


def check(what, got, want):
    assert got == want, f"{what}: merge-any, more threads: {got}, expected {want}"


def test_first_rule_that_holds():
    cases = [("no rule", "", ADVICE_ONLY),
             ("its path", f"merge-any exe={PYTHON}\n", MERGE_ANY),
             ("a pattern", "merge-any exe=/usr/bin/pyth*\n", MERGE_ANY),
             ("another's path", "merge-any exe=/usr/bin/perl\n", ADVICE_ONLY),
             ("the first one", "off exe=/usr/bin/py*\nmerge-any exe=*\n", ADVICE_ONLY),
             ("all conditions", f"merge-any exe={PYTHON} uid={os.getuid()}\n", MERGE_ANY),
             ("one condition fails", f"merge-any exe={PYTHON} uid={os.getuid() + 1}\n", ADVICE_ONLY),
             ("wrong lines are none", f"merge-any\noff exe=x\n\x01\n{'x' * 5000}\nmerge-any exe=*\n", MERGE_ANY)]
    for what, text, want in cases:
        with rules(a=text) as directory:
            check(what, state(directory), want)
    with rules(a="off exe=*\n", b="merge-any exe=*\n") as directory:
        check("files by name", state(directory), ADVICE_ONLY)
    check("no directory", state("/nonexistent/rules.d"), ADVICE_ONLY)
    check("none", state(""), ADVICE_ONLY)


def test_against_the_environment():
    asks = {"USERKSM_MERGE_ANY": "1"}
    for text, env, want in (("off exe=*\n", asks, ADVICE_ONLY), ("madvise exe=*\n", asks, MERGE_ANY), ("", asks, MERGE_ANY),
                            ("merge-any exe=*\n", {"USERKSM_MERGE_ANY": "0"}, MERGE_ANY),
                            ("merge-any exe=*\n", {"USERKSM_DISABLE": "1"}, ADVICE_ONLY), ("madvise exe=*\nmerge-any exe=*\n", {}, ADVICE_ONLY)):
        with rules(a=text) as directory:
            check(f"{text!r} with {env}", state(directory, **env), want)


def test_programs_that_it_starts_are_judged_anew():
    with rules(a=f"merge-any exe={PYTHON}\n") as directory:
        perl = "open F, '/proc/self/status'; print grep { /^Threads/ } <F>"
        ask = f"import os; os.execv('/usr/bin/perl', ['perl', '-e', {perl!r}])"
        assert command(PYTHON, "-c", ask, directory=directory).split() == ["Threads:", "1"]


def test_files_that_others_may_write():
    with rules(a="merge-any exe=*\n") as directory:
        path = pathlib.Path(directory, "a.conf")
        for target, mode, want in ((path, 0o666, ADVICE_ONLY), (path, 0o664, ADVICE_ONLY), (path, 0o600, MERGE_ANY),
                                   (directory, 0o777, ADVICE_ONLY), (directory, 0o755, MERGE_ANY)):
            os.chmod(target, mode)
            check(f"{target} {mode:o}", state(directory), want)
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
            check("another user's file", state(directory), ADVICE_ONLY)
        os.rename(path, directory + "/real")
        os.symlink(directory + "/real", path)
        check("a link", state(directory), ADVICE_ONLY)


def copies_for_others():
    """The shim, where every user can read it."""
    directory = tempfile.mkdtemp(prefix="userksm-test-", dir="/var/tmp")
    os.chmod(directory, 0o755)
    shutil.copy(SHIM, directory + "/shim.so")
    os.chmod(directory + "/shim.so", 0o755)
    return directory


def test_user():
    if os.getuid() != 0:
        skip("needs root: programs of other users")
    there = copies_for_others()
    try:
        with rules(a=f"merge-any uid={NOBODY - 1}-{NOBODY}\n") as directory:
            check("of the user", state(directory, user=NOBODY, preload=there + "/shim.so"), MERGE_ANY)
            check("of another", state(directory), ADVICE_ONLY)
    finally:
        shutil.rmtree(there)


def test_unit():
    """In a control group of cgroup2, wherever that is mounted, named as systemd would."""
    mounts = [line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2"]
    mine = next((line[3:] for line in open("/proc/self/cgroup").read().splitlines() if line.startswith("0::/")), None)
    parent = pathlib.Path((mounts + ["/nonexistent"])[0] + (mine or "").rstrip("/"))
    group = parent / f"userksm-test@{os.getpid()}.service"
    if mine is None or not os.access(parent, os.W_OK) or os.getuid() != 0:
        print("  not by unit: no control group can be made here")
        return
    (group / "inner").mkdir(parents=True)
    try:
        enter = f"echo $$ >{group}/inner/cgroup.procs && exec {PYTHON} -c \"$0\""
        path = f"{mine.rstrip('/')}/{group.name}/inner"
        for text, want in (("merge-any unit=userksm-test@*.service\n", MERGE_ANY), (f"merge-any cgroup={path}\n", MERGE_ANY),
                           ("merge-any unit=userksm-test@.service\n", ADVICE_ONLY), (f"merge-any cgroup={path}/x\n", ADVICE_ONLY)):
            with rules(a=text) as directory:
                check(text, command("sh", "-c", enter, STATE, directory=directory), want)
    finally:
        until(lambda: not (group / "inner/cgroup.procs").read_text(), 10, "the group is empty")
        (group / "inner").rmdir()
        group.rmdir()


def private_etc(there, files):
    """Words that run what follows with a copy of /etc of its own, in which the shim is preloaded into everything."""
    etc = there + "/etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=lambda d, names: [n for n in names if not os.access(os.path.join(d, n), os.R_OK)])
    pathlib.Path(etc, "ld.so.preload").write_text(there + "/shim.so\n")
    os.makedirs(etc + "/userksm/rules.d")
    for name, text in files.items():
        pathlib.Path(etc, "userksm/rules.d", name + ".conf").write_text(text)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"mount --bind {etc} /etc && exec \"$@\"", "sh"]


def test_system_wide():
    """By /etc/ld.so.preload, in a mount namespace of the test's own: every program has the shim, rules choose."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        skip("needs root, and unshare")
    there = copies_for_others()
    try:
        inside = private_etc(there, {"10": "off exe=*/perl*\nmerge-any exe=*/python*\n"})
        check("chosen", command(*inside, PYTHON, "-c", STATE, preload=None), MERGE_ANY)
        assert command(*inside, "sh", "-c", "ls /proc/self/task | wc -l", preload=None) == "1"
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        check("of another user", command(*inside, *as_nobody, PYTHON, "-c", STATE, preload=None), MERGE_ANY)
        setuid = there + "/python-setuid"
        shutil.copy(PYTHON, setuid)
        os.chmod(setuid, 0o4755)
        if os.statvfs(there).f_flag & os.ST_NOSUID:
            print("  not in setuid programs: /var/tmp has nosuid")
        else:
            ids = "import os; assert os.geteuid() == 0 != os.getuid(); "
            check("setuid", command(*inside, *as_nobody, setuid, "-I", "-c", ids + STATE, preload=None), ADVICE_ONLY)
        # Without /proc the path of the program cannot be known: nothing is decided, nothing fails.
        root = there + "/root"
        os.mkdir(root)
        chroot = ["sh", "-c", f"mount --bind / {root} && mount --bind {there}/etc {root}/etc && exec chroot {root} \"$@\"", "sh"]
        check("without /proc", command(*inside, *chroot, PYTHON, "-c", STATE, preload=None), "0 0")
    finally:
        shutil.rmtree(there)


def test_with_a_daemon():
    """A chosen program is merged, and ksmctl says that it is."""
    hold = "import sys; data = bytearray(4 << 20); print('ready', flush=True); sys.stdin.read()"
    with Daemon() as d, rules(a=f"merge-any exe={PYTHON}\n") as directory:
        env = {"PATH": os.environ["PATH"], "LD_PRELOAD": str(SHIM), "USERKSM_SOCKET": d.socket, "USERKSM_RULES_DIR": directory}
        p = subprocess.Popen([PYTHON, "-c", hold], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline() == "ready\n"
        until(lambda: any(c["pid"] == p.pid and c["merge_any"] for c in json.loads(d.ctl("status", "--json").stdout)["processes"]), 20,
              "it is connected, in merge-any mode")
        until(lambda: "ksm_merge_any: yes" in d.ctl("status", str(p.pid)).stdout, 10, "so says its status")
        p.communicate()
        assert p.returncode == 0


def test_check_reports_what_is_not_followed():
    with rules(a="merge-any exe=*\noff\n\nmerge-any exe=python\n", b="off uid=0\n") as directory:
        os.chmod(directory + "/b.conf", 0o666)
        env = {**os.environ, "USERKSM_RULES_DIR": directory}
        said = subprocess.run([BUILD / "ctl/ksmctl", "check", "--json"], env=env, capture_output=True, text=True, timeout=60).stdout
        found = [(c["name"], c["found"]) for c in json.loads(said)["checks"] if c["name"] in ("rules", "rule")]
        assert found[0] == ("rules", f"1 in 1 files of {directory}, 3 problems"), found
        assert [f.split(": ")[0] for _, f in found[1:]] == ["a.conf:2", "a.conf:4", "b.conf"], found
        said = subprocess.run([BUILD / "ctl/ksmctl", "check"], env=env, capture_output=True, text=True, timeout=60).stdout
        assert "a.conf:4: a path must begin with / or *" in said, said


if __name__ == "__main__":
    if not os.path.exists(PYTHON) or stat.S_IMODE(os.stat(PYTHON).st_mode) & 0o111 == 0:
        skip("no /usr/bin/python3")
    run(test_first_rule_that_holds, test_against_the_environment, test_programs_that_it_starts_are_judged_anew, test_files_that_others_may_write,
        test_user, test_unit, test_system_wide, test_with_a_daemon, test_check_reports_what_is_not_followed)
