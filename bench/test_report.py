#!/usr/bin/env python3
"""The arithmetic of the report, and the document that is made of results, complete and incomplete ones."""
import pathlib
import tempfile
import unittest

import report
import results
from figures import Check, batch_for_share, cost, medians, number, percentile, ratio, reached, spread
from workloads import ROWS
from workloads.base import Plan, time_ratio_at_equal_share
from profiles import grouped

ROUNDS = [{"plain": {"subjects_cpu_s": 1.0}, "userksm": {"engine_cpu_s": e, "agents_cpu_s": 0.5, "subjects_cpu_s": 1.25}}
          for e in (3.0, 1.0, 100.0, 2.0, 1.5)]


class Figures(unittest.TestCase):
    def test_median_over_rounds(self):
        middle = medians(ROUNDS)
        self.assertEqual(middle["userksm"]["engine_cpu_s"], 2.0)
        self.assertEqual(spread(ROUNDS, "userksm", "engine_cpu_s"), (1.0, 100.0))
        self.assertIsNone(spread(ROUNDS, "ksm", "engine_cpu_s"))

    def test_a_round_may_lack_a_figure(self):
        self.assertEqual(medians([{"a": {"x": 1}}, {"a": {}}, {"b": {"x": 9}}, {"a": {"x": 3, "text": "no number"}}]),
                         {"a": {"x": 2}, "b": {"x": 9}})

    def test_cost_is_everything_that_merging_needs(self):
        self.assertEqual(cost(medians(ROUNDS), "userksm"), 2.0 + 0.5 + 0.25)
        self.assertIsNone(cost(medians(ROUNDS), "ksm"))

    def test_ratio(self):
        self.assertEqual(ratio(1, 4), 0.25)
        self.assertIsNone(ratio(1, 0))
        self.assertIsNone(ratio(None, 4))

    def test_percentile_of_a_histogram(self):
        buckets = [(64, 900), (128, 90), (256, 10), (None, 0)]
        self.assertEqual(percentile(buckets, 0.45), 32)
        self.assertEqual(percentile(buckets, 0.99), 128)
        self.assertAlmostEqual(percentile(buckets, 0.999), 128 + 128 * 0.9)
        self.assertEqual(percentile([(64, 1), (None, 99)], 0.999), 64)
        self.assertIsNone(percentile([(64, 0), (None, 0)], 0.5))

    def test_where_a_curve_reached_something(self):
        curve = [[1.0, 0.5, 0.0, 100], [2.0, 1.5, 40.0, 300], [3.0, 2.0, 40.0, 350], [4.0, 2.5, 80.0, 400]]
        self.assertEqual(reached(curve, 20.0), [1.5, 1.0, 20.0, 200])
        self.assertEqual(reached(curve, 40.0), [2.0, 1.5, 40.0, 300])
        self.assertEqual(reached(curve, 60.0), [3.5, 2.25, 60.0, 375])
        self.assertIsNone(reached(curve, 81.0))
        self.assertEqual(reached([[0.5, 0.25, 10.0]], 5.0), [0.25, 0.125, 5.0])

    def test_batch_for_a_share_of_a_cpu(self):
        self.assertEqual(batch_for_share(0.5, 2.0, 20), 10000)  # 20 ms of work, 20 ms of sleep
        self.assertEqual(batch_for_share(0.2, 2.5, 20), 2000)
        self.assertEqual(batch_for_share(0.0, 2.5, 20), 1)
        self.assertEqual(batch_for_share(7.0, 2.0, 20), batch_for_share(0.95, 2.0, 20))

    def test_functions_in_groups(self):
        functions = [[40.0, "ksmd", "[k] memcmp"], [20.0, "ksmd", "[k] xxh64"], [15.0, "userksmd", "[.] XXH3_64bits_withSecret"],
                     [10.0, "userksmd", "[.] index_fetch"], [9.0, "userksm", "[k] move_pages_ptes"], [6.0, "userksmd", "[k] no_such_function"]]
        self.assertEqual(grouped(functions), [(40.0, "comparing"), (35.0, "hashing"), (10.0, "tables of what is known"), (9.0, "changing mappings"),
                                              (6.0, "the rest of the kernel")])

    def test_verdict(self):
        self.assertEqual(Check("", 0.5, 0.5).verdict, "met")
        self.assertEqual(Check("", 0.51, 0.5).verdict, "missed")
        self.assertEqual(Check("", 0.94, 0.95, at_least=True).verdict, "missed")
        self.assertEqual(Check("", 0.95, 0.95, at_least=True).verdict, "met")
        self.assertEqual(Check("", None, 1).verdict, "not measured")

    def test_numbers_as_people_write_them(self):
        shown = {None: "-", 0: "0", 5.0: "5", 1234567.8: "1,234,568", 12.34: "12.3", 1.234: "1.23", 0.5: "0.500", 0.00916: "0.0092"}
        self.assertEqual({value: number(value) for value in shown}, shown)


class Documents(unittest.TestCase):
    @staticmethod
    def result(name, rounds):
        return {**results.begin(ROWS[name](), Plan()), "rounds": rounds, "others": [0.01], "settings": {"userksm": "defaults"}}

    def test_met_and_missed_stand_in_the_document(self):
        sides = {"userksm": {"pass_cpu_ms": 10.0, "scans": 20}, "ksm": {"pass_cpu_ms": 600.0}, "ksm smart": {"pass_cpu_ms": 40.0}}
        text = report.document([(ROWS["steady"](), self.result("steady", [sides]))])
        self.assertIn("at most 0.0200 x | 0.0167 x | met |", text)
        self.assertIn("at most 0.200 x | 0.250 x | **missed** |", text)
        self.assertNotIn("busy", text)

    def test_what_remains(self):
        sides = {"plain": {"subjects_cpu_s": 0.0}}
        for side, seconds in (("userksm", 2.0), ("ksm", 5.0)):
            sides[side] = {"engine_cpu_s": seconds, "agents_cpu_s": 0.0, "subjects_cpu_s": 0.0}
        result = self.result("converge", [sides])
        # 4 processes of 512 MiB, half of it common: 524,288 pages to read, three quarters of the common half to compare.
        result["unit_costs"] = [{"read_ns": 1000.0, "compare_ns": 900.0, "write_ns": 50.0}, {"read_ns": 2000.0, "compare_ns": 500.0, "write_ns": 100.0}]
        result["profile"] = {"userksm": {"groups": [[60.0, "hashing"]], "functions": [[60.0, "userksmd", "[.] XXH3_64bits"]]},
                             "ksm": {"groups": [[70.0, "comparing"], [30.0, "hashing"]], "functions": [[70.0, "ksmd", "[k] memcmp"]]}}
        text = report.document([(ROWS["converge"](), result)])
        self.assertIn("| 524,288 | 196,608 | 262,144 | 0.636 s | 2 s | 3.15 x | 5 s | 7.87 x | hashing 60 % |", text)
        self.assertIn("| hashing | 60.0 | comparing | 70.0 |\n|  |  | hashing | 30.0 |", text)
        self.assertIn("ksm, dearest functions: `memcmp` 70.0.", text)

    def test_slowdown_is_system_time_beyond_that_without_merging(self):
        plain = {"write_us": 1.0, "pages": 1000000, "writer_system_s": 0.01}  # of a second
        ours = {"write_us": 2.0, "pages": 500000, "writer_system_s": 0.03}
        self.assertAlmostEqual(ROWS["dirty"]().slowdown({"plain": plain, "userksm": ours}, "userksm"), 100 * (3 / 97 - 1 / 99))

    def test_time_at_equal_share(self):
        sides = {"userksm": {"wall_s": 2.0, "share": 0.5}, "ksm, equal CPU": {"wall_s": 8.0, "share": 0.25}}
        self.assertEqual(time_ratio_at_equal_share(sides, "wall_s"), 0.5)
        self.assertIsNone(time_ratio_at_equal_share({"userksm": sides["userksm"]}, "wall_s"))
        self.assertIsNone(time_ratio_at_equal_share({**sides, "ksm, equal CPU": {"wall_s": 8.0}}, "wall_s"))

    def test_no_row_fails_where_a_side_is_missing(self):
        for name, row in ROWS.items():
            for sides in ({}, {"plain": {}}, {"userksm": {}}, {"plain": {}, "userksm": {}, "ksm": {}}):
                with self.subTest(name, sides=list(sides)):
                    work = row().least_work(Plan(), sides)
                    self.assertIn(None, (work, row().spent_s(sides, "userksm")))
                    for check in row().checks(sides):
                        self.assertEqual(check.verdict, "not measured")

    def test_results_survive_their_file(self):
        with tempfile.TemporaryDirectory() as directory:
            saved = self.result("steady", ROUNDS)
            saved["curves"] = {"userksm": [[0.1, 0.2, 3]], "ksm": []}
            results.save(saved, pathlib.Path(directory))
            self.assertEqual(results.load("steady", pathlib.Path(directory)), saved)
            self.assertTrue(results.same_plan(saved, Plan(rounds=9)))
            self.assertFalse(results.same_plan(saved, Plan(period_s=1)))


if __name__ == "__main__":
    unittest.main()
