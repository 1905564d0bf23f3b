#!/usr/bin/env python3
"""ksmctl against a fake daemon (tests/support/fake_daemon.c): output, exit statuses, and every way a daemon can fail.

usage: test_ksmctl.py KSMCTL FAKE_DAEMON"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

KSMCTL, FAKE = sys.argv[1], sys.argv[2]


class Daemon:
    """A fake daemon in a directory of its own, for a with statement."""

    def __init__(self, mode):
        self.mode = mode

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.socket = self.directory.name + "/sock"
        self.process = subprocess.Popen([FAKE, self.socket, self.mode], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.directory.cleanup()

    def ctl(self, *arguments):
        return ctl("--socket", self.socket, *arguments)


def ctl(*arguments, **environment):
    return subprocess.run([KSMCTL, *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})


class Test(unittest.TestCase):
    def expect(self, result, status, stderr="", stdout=""):
        self.assertEqual(result.returncode, status, result)
        self.assertIn(stderr, result.stderr)
        self.assertIn(stdout, result.stdout)
        if not stderr:
            self.assertEqual(result.stderr, "")

    def test_status(self):
        with Daemon("normal") as d:
            result = d.ctl("status")
            self.expect(result, 0)
            lines = result.stdout.splitlines()
            self.assertEqual(lines[0].split()[:4], ["PID", "COMMAND", "STATE", "REGISTERED"])
            # Names of processes reach the terminal without their control characters.
            self.assertEqual(lines[1].split(),
                             ["1001", "evil?[2J?", "active", "4.00", "GiB", "80.0", "KiB", "4.00", "KiB",
                              "64.0", "KiB", "-8.00", "KiB"])
            self.assertNotIn("\033", result.stdout)
            self.assertEqual(len([line for line in lines if " worker " in line]), 199)
            total = next(line for line in lines if " processes " in line)
            self.assertEqual(total.split()[:2], ["200", "processes"])
            self.assertIn("800 GiB", total)
            # Parts: 200 * (20 * 3/4 + 1) pages.
            self.assertIn("12.5 MiB", total)
            self.assertIn("saved 12.7 MiB: 11.7 MiB of further mappings of 3.91 MiB", result.stdout)
            self.assertIn("up 1 h 2 min", result.stdout)
            self.assertIn("! 1 raw", result.stdout)
            self.assertIn("! 1 parked", result.stdout)
            self.assertIn("! 1 at the limit of VMAs", result.stdout)
            self.assertIn("pinned for I/O", result.stdout)
            self.assertNotIn("merging is off", result.stdout)
            d.ctl("set", "run=0")
            self.expect(d.ctl("status", "--wide"), 0, stdout="merging is off (run=0)")

    def test_json(self):
        with Daemon("normal") as d:
            stats = json.loads(d.ctl("stats", "--json").stdout)
            self.assertEqual(stats["counters"]["pages_sharing"], 3000)
            self.assertEqual(stats["counters"]["general_profit"], -4096)
            self.assertEqual(stats["saved_bytes"], 3256 * 4096)
            self.assertNotIn("processes", stats)
            plain = dict(line.split() for line in d.ctl("stats").stdout.splitlines())
            self.assertEqual({k: int(v) for k, v in plain.items()}, stats["counters"])
            status = json.loads(d.ctl("status", "--json").stdout)
            self.assertEqual(len(status["processes"]), 200)
            self.assertEqual(status["processes"][1]["state"], "raw")
            self.assertEqual(status["processes"][0]["saved_bytes"], 16 * 4096)

    def test_one_process(self):
        with Daemon("normal") as d:
            result = d.ctl("status", "1002")
            self.expect(result, 0)
            lines = result.stdout.splitlines()
            self.assertEqual(lines[:6], ["ksm_rmap_items 0", "ksm_zero_pages 1", "ksm_merging_pages 20", "ksm_process_profit -8192",
                                         "ksm_merge_any: no", "ksm_mergeable: no"])
            self.assertIn("state raw", lines)
            self.assertIn("unit -", lines)  # there is no such process on this machine, or it is somebody else's
            result = d.ctl("status", "1002", "--ranges")
            self.expect(result, 0)
            rows = [line.split() for line in result.stdout.splitlines()[-2:]]
            self.assertEqual(rows, [["10000", "3.91", "MiB", "204", "KiB", "160", "KiB", "28.0", "KiB", "0", "mergeable"],
                                    ["1388000", "4.00", "KiB", "0", "0", "0", "4.00", "KiB", "unmerged"]])
            process, = json.loads(d.ctl("status", "1002", "--ranges", "--json").stdout)["processes"]
            self.assertEqual((process["ksm_merging_pages"], process["mergeable"]), (20, False))
            self.assertEqual([(r["start"], r["bytes"], r["tracked_bytes"]) for r in process["range_list"]],
                             [(16 * 4096, 1000 * 4096, 51 * 4096), (5000 * 4096, 4096, 0)])
            self.expect(d.ctl("status", "999"), 67, "process 999 is not connected")
            for bad in (["0"], ["x"], ["1", "2"], ["--ranges"], ["1002", "--domains"], ["-1"]):
                self.expect(d.ctl("status", *bad), 64, "usage" if bad != ["-1"] else "ksmctl")

    def test_domains(self):
        with Daemon("normal") as d:
            result = d.ctl("status", "--domains")
            self.expect(result, 0)
            lines = result.stdout.splitlines()
            self.assertEqual(len(lines), 1 + 70 + 2)
            self.assertTrue(lines[1].endswith("uid=0 unit=?[2J"), lines[1])
            self.assertEqual(lines[-1].split()[:2], ["70", "140"])
            self.assertIn("domains in all", lines[-1])
            domains = json.loads(d.ctl("status", "--domains", "--json").stdout)["domains"]
            self.assertEqual([x["domain"] for x in domains], list(range(1, 71)))
            self.assertEqual((domains[0]["shared_bytes"], domains[0]["processes"]), (1 << 20, 2))

    def test_tunables(self):
        with Daemon("normal") as d:
            self.expect(d.ctl("get", "run"), 0, stdout="1\n")
            self.expect(d.ctl("set", "--force", "run=2", "pages_to_scan=123"), 0)
            self.assertEqual(d.ctl("get", "pages_to_scan", "run").stdout, "pages_to_scan=123\nrun=2\n")
            self.expect(d.ctl("get"), 0, stdout="max_page_sharing")
            # One mistake and nothing is set.
            self.expect(d.ctl("set", "pages_to_scan=7", "run=3"), 64, "run takes a whole number from 0 to 2")
            self.expect(d.ctl("set", "pages_to_scan=7", "runn=1"), 64, "no tunable 'runn'")
            for bad in "run", "=1", "run=", "run=1x", "run=99999999999999999999", "x" * 99 + "=1":
                self.expect(d.ctl("set", "pages_to_scan=7", bad), 64, "ksmctl: ")
            self.assertEqual(d.ctl("get", "pages_to_scan").stdout, "123\n")
            self.expect(d.ctl("get", "nothing"), 64, "no tunable 'nothing'")

    def test_choices(self):
        """By name, shown as the kernel shows them, and taken as they are shown."""
        with Daemon("normal") as d:
            self.expect(d.ctl("get", "advisor_mode"), 0, stdout="[none] scan-time\n")
            self.expect(d.ctl("set", "pages_to_scan=9", "advisor_mode=scan-time", "use_zero_pages=no"), 0)
            self.expect(d.ctl("get", "advisor_mode"), 0, stdout="none [scan-time]\n")
            self.assertEqual(d.ctl("get", "use_zero_pages", "advisor_mode").stdout, "use_zero_pages=0\nadvisor_mode=scan-time\n")
            self.expect(d.ctl("get"), 0, stdout="none [scan-time]")
            self.expect(d.ctl("set", "advisor_mode=1"), 64, "advisor_mode takes none or scan-time, not '1'")
            self.expect(d.ctl("set", "pages_to_scan=10"), 1, "setting pages_to_scan: the advisor sets it")
            self.expect(d.ctl("set", "advisor_mode=" + d.ctl("get", "advisor_mode").stdout.strip()), 0)
            self.expect(d.ctl("set", "advisor_mode=none", "pages_to_scan=10"), 0)
            self.expect(d.ctl("get", "pages_to_scan"), 0, stdout="10\n")

    def test_help_has_every_tunable(self):
        for verb in "get", "set":
            text = subprocess.run([KSMCTL, verb, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
            self.assertIn("[none or scan-time, default none]", text)
            self.assertIn("[0 to 4294967295, default 20 ms]", text)

    def test_merge(self):
        with Daemon("normal") as d:
            self.expect(d.ctl("merge", "1"), 0, stdout="merged 512 pages (2.00 MiB)")
            self.expect(d.ctl("unmerge", "all"), 0, stdout="restored 512 pages (2.00 MiB)")
            self.expect(d.ctl("unmerge", "78"), 1, "3 pages (12.0 KiB) are still merged", "restored 512")
            refused = "would take 2.00 MiB, and 1.00 MiB can be had"
            self.expect(d.ctl("unmerge", "75"), 1, refused + " in the control group of process 75")
            self.expect(d.ctl("unmerge", "--force", "75"), 0, stdout="restored 512 pages")
            self.expect(d.ctl("unmerge", "--range=7f0000000000-7f0000004000", "1"), 0, stdout=f"restored {0x7f0000000} pages")
            for bad in "7f0000000000", "2000-1000", "1000-1001", "x-y", "1000-", "-1000", "0-200000000000000":
                self.expect(d.ctl("unmerge", "--range=" + bad, "1"), 64, "is no range START-END")
            self.expect(d.ctl("unmerge", "--range=1000-2000", "all"), 64, "--range needs a process")
            self.expect(d.ctl("set", "run=2"), 1, "setting run: refused, the private copies " + refused)
            self.expect(d.ctl("set", "--force", "run=2"), 0)
            self.expect(d.ctl("merge", "77"), 67, "no such process is connected")
            self.expect(d.ctl("unmerge", "76"), 1, "without libc and is left alone")
            for bad in "0", "-1", "x", "1x", "", "4294967297":
                self.expect(d.ctl("merge", "--", bad), 64, "neither a process id nor 'all'")
            self.expect(d.ctl("merge"), 64, "usage")
            self.expect(d.ctl("merge", "1", "2"), 64, "usage")

    def test_denied(self):
        with Daemon("denied") as d:
            for arguments in (["set", "run=1"], ["merge", "1"], ["unmerge", "all"]):
                self.expect(d.ctl(*arguments), 77, "only root and the daemon's own user")
            self.expect(d.ctl("stats"), 0)

    def test_failing_daemons(self):
        for mode, status, text in (("refuse", 77, "too many connections of this user"),
                                   ("version", 76, "of different builds"),
                                   ("garbage", 76, "of different builds"),
                                   ("close", 69, "closed the connection"),
                                   ("silent", 69, "did not answer for 10 s")):
            with self.subTest(mode), Daemon(mode) as d:
                result = d.ctl("status")
                self.expect(result, status, text)
                self.assertEqual(len(result.stderr.splitlines()), 1)
        with Daemon("loop") as d:  # the list of clients ends, whatever the daemon does
            self.expect(d.ctl("status"), 76, "reading the status")

    def test_no_daemon(self):
        with tempfile.TemporaryDirectory() as directory:
            missing = directory + "/sock"
            self.expect(ctl("--socket", missing, "status"), 69, "'ksmctl run' brings its own")
            self.expect(ctl("status", USERKSM_SOCKET=missing), 69, missing)
            with open(missing, "w"):
                self.expect(ctl("--socket", missing, "status"), 69, "nobody listens")
        self.expect(ctl("--socket", "x" * 200, "status"), 64, "cannot be the path")
        self.expect(ctl("--socket", "", "status"), 64, "cannot be the path")

    def test_check(self):
        result = ctl("check", "--json")
        report = json.loads(result.stdout)
        missing = [c for c in report["checks"] if c["need"] == "required" and c["status"] != "ok"]
        self.assertEqual(report["usable"], not missing)
        self.assertEqual(result.returncode, 69 if missing else 0)
        self.assertTrue(all(c["remedy"] for c in report["checks"] if c["need"] != "info"))
        plain = ctl("check")
        self.assertEqual(plain.returncode, result.returncode)
        self.assertEqual(plain.stdout.count("MISSING ") + plain.stdout.count("NO RIGHT "), len(missing))
        self.assertEqual(plain.stdout.count("          -> "),
                         len([c for c in report["checks"] if c["need"] != "info" and c["status"] != "ok"]))
        with Daemon("normal") as d:
            self.assertRegex(d.ctl("check").stdout, r"ok +running daemon: .*version fake")

    def test_command_line(self):
        self.expect(ctl("--help"), 0, stdout="unmerge")
        self.expect(ctl("--version"), 0, stdout="ksmctl (userksm) ")
        self.expect(ctl(), 64, "a verb is missing")
        self.expect(ctl("mrege"), 64, "no verb 'mrege'")
        self.expect(ctl("--sokcet", "x"), 64, "--sokcet")
        for verb in "run", "status", "stats", "get", "set", "merge", "unmerge", "check":
            self.expect(ctl(verb, "--help"), 0, stdout="Usage: ksmctl [--socket PATH] " + verb)
        self.expect(ctl("status", "--watch=0"), 64, "seconds")
        self.expect(ctl("status", "surplus"), 64, "usage")
        with open("/dev/full", "w") as full:
            r = subprocess.run([KSMCTL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
            self.assertEqual(r.returncode, 71)
        self.expect(ctl("run"), 125, "usage")


unittest.main(argv=sys.argv[:1])
