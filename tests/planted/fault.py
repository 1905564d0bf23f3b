"""What a planted fault is, and what may kill one.

`old` occurs exactly once in `file`; `new` takes its place. `tests` are tried in this order: names of meson tests, or of TESTS below."""
import dataclasses

# Tests that are not one meson test: what to run, from the root of the source.
TESTS = {
    "torture 20 s": ["tests/e2e/test_shim_torture.py", "--seconds=20", "--delay-usec=2000", "--regions=2"],
    "chaos 20 s": ["tests/e2e/test_shim_torture.py", "--chaos", "--seconds=20", "--delay-usec=500"],
    "shadow 40 s": ["tests/shadow/run.py", "--minutes=0.7", "--seed=1000", "--shrink-seconds=0"],
    "rules e2e": ["tests/e2e/test_rules.py"],
    "sysfs files": ["tests/e2e/test_sysfs.py", "the_files_are_the_kernels", "reading_is_as_from_sysfs", "nothing_else_can_be_done",
                    "writes_fail_alike", "each_domain_has_a_directory"],
    "sysfs run 2": ["tests/e2e/test_sysfs.py", "run_2_waits_for_what_can_be_restored"],
    "sysfs daemon": ["tests/e2e/test_sysfs.py", "the_daemon_may_go_and_come"],
}
# Programs with arguments that need nothing else: the path in the build directory and the arguments.
PROGRAMS = {"sim": ["tests/sim/sim", "1", "25"]}
LIB = ("transitions", "discards", "hostile", "remerge", "fork")
SHIM = ("torture 20 s", "chaos 20 s")
CORE = ("core", "core_races", "core_requests", "core_scans", "core_life", "core_adopt", "core_ranges", "core_index", "core_memory", "core_prune", "core_nodes", "core_pace", "core_round", "sim")


@dataclasses.dataclass
class Fault:
    name: str
    breaks: str
    text: str
    file: str
    old: str
    new: str
    tests: tuple

    def __post_init__(self):
        assert isinstance(self.tests, tuple), self.name
