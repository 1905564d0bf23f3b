#!/usr/bin/env python3
"""bench/host.py: the machine's setting is put back, also after a run that was killed outright, and by it after an error."""
import pathlib
import tempfile
import unittest

from host import keeping_free_memory, never


class Host(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.parameter, self.left = pathlib.Path(directory.name) / "order", pathlib.Path(directory.name) / "left"

    def test_puts_back_what_was_found(self):
        self.parameter.write_text("9\n")
        with self.assertRaises(RuntimeError):
            with keeping_free_memory(self.parameter, self.left):
                self.assertEqual(self.parameter.read_text(), never())
                raise RuntimeError
        self.assertEqual(self.parameter.read_text(), "9")
        self.assertFalse(self.left.exists())

    def test_puts_back_what_one_that_was_killed_found(self):
        self.parameter.write_text(never())
        self.left.write_text("9")
        with keeping_free_memory(self.parameter, self.left):
            pass
        self.assertEqual(self.parameter.read_text(), "9")

    def test_does_nothing_where_there_is_no_such_setting(self):
        with keeping_free_memory(self.parameter, self.left):
            self.assertFalse(self.parameter.exists() or self.left.exists())

    def test_leaves_alone_what_could_not_be_put_back(self):
        self.parameter.write_text("4294967295\n")
        with keeping_free_memory(self.parameter, self.left):
            self.assertEqual(self.parameter.read_text(), "4294967295\n")
            self.assertFalse(self.left.exists())


if __name__ == "__main__":
    unittest.main()
