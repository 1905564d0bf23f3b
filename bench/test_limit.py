#!/usr/bin/env python3
"""bench/limit.c: says what each operation costs, and no more than that it costs something; refuses nonsense."""
import json
import subprocess
import sys
import unittest

LIMIT = sys.argv.pop(1)


def run(*arguments):
    return subprocess.run([LIMIT, *arguments], capture_output=True, text=True, timeout=50)


class Limit(unittest.TestCase):
    def test_each_operation_costs_something(self):
        out = run("4")
        self.assertEqual(out.returncode, 0, out.stderr)
        costs = json.loads(out.stdout)
        self.assertEqual(set(costs), {"read_ns", "compare_ns", "write_ns"})
        for name, ns in costs.items():
            self.assertGreater(ns, 0, name)

    def test_refuses_what_is_no_size(self):
        for arguments in (["0"], ["x"], ["5000"], ["1", "2"]):
            self.assertEqual(run(*arguments).returncode, 64, arguments)


if __name__ == "__main__":
    unittest.main()
