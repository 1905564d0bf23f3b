#!/usr/bin/env python3
"""The arithmetic of the report, and the document that is made of results, complete and incomplete ones."""
import pathlib
import tempfile
import unittest

import report
import results
from figures import Check, cost, medians, number, percentile, ratio, spread
from workloads import ROWS
from workloads.base import Plan

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
        return {**results.begin(ROWS[name](), Plan()), "rounds": rounds, "load": [0.1], "settings": {"userksm": "defaults"}}

    def test_met_and_missed_stand_in_the_document(self):
        sides = {"userksm": {"pass_cpu_ms": 10.0, "scans": 20}, "ksm": {"pass_cpu_ms": 600.0}, "ksm smart": {"pass_cpu_ms": 40.0}}
        text = report.document([(ROWS["steady"](), self.result("steady", [sides]))])
        self.assertIn("at most 0.0200 x | 0.0167 x | met |", text)
        self.assertIn("at most 0.200 x | 0.250 x | **missed** |", text)
        self.assertNotIn("busy", text)

    def test_no_row_fails_where_a_side_is_missing(self):
        for name, row in ROWS.items():
            for sides in ({}, {"plain": {}}, {"userksm": {}}, {"plain": {}, "userksm": {}, "ksm": {}}):
                with self.subTest(name, sides=list(sides)):
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
