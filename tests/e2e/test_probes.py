#!/usr/bin/env python3
"""The USDT probes of userksmd: that they are in the file as common/probes.h says, and what they say of a run, hit by hit."""
import os
import pathlib
import platform
import re

from harness import BUILD, Daemon, Victim, run, skip, until
from probes import Probes, Refused, notes, register_of

HEADER = pathlib.Path(__file__).resolve().parents[2] / "common/probes.h"
SIZES = {"uint64_t": "8", "int64_t": "-8", "uint32_t": "4", "int32_t": "-4"}
# include/trace/events/ksm.h
KERNEL = set("""ksm_start_scan ksm_stop_scan ksm_enter ksm_exit ksm_merge_one_page ksm_merge_with_ksm_page ksm_remove_ksm_page
             ksm_remove_rmap_item ksm_advisor""".split())
COMMON, ZERO, POKED = 256, 64, 10
PROGRAM = BUILD / "daemon/userksmd"


def declared():
    """name -> argument types, by the header."""
    found = re.findall(r"PROBE probe_(\w+)\(([^)]*)\)", HEADER.read_text())
    return {name: [a.split()[0] for a in arguments.split(",")] for name, arguments in found}


def test_notes_are_what_the_header_says():
    there, want = notes(PROGRAM, "userksm"), declared()
    assert set(want) <= KERNEL, f"not names of KSM's: {set(want) - KERNEL}"
    assert set(there) == set(want), f"in the program {sorted(there)}, in the header {sorted(want)}"
    for name, places in there.items():
        for _, arguments in places:
            assert [a.split("@")[0] for a in arguments] == [SIZES[t] for t in want[name]], f"{name}: {arguments}"
            for operand in (a.split("@")[1] for a in arguments):
                assert operand.startswith("$") or register_of(operand) is not None, f"{name}: {operand} is not in a register"


def address(victim, name):
    return int(victim.do("address", name).split()[1]) // 4096


def pages_of(hits, client, n_before):
    """Pages of a client that were merged, by the hits of a probe with n_before arguments before `page`."""
    return {h[n_before] for h in hits if h[n_before + 2] == client and h[n_before + 3] == 0}


def test_scans_follow_each_other(probes):
    starts, stops = probes.hits["ksm_start_scan"], probes.hits["ksm_stop_scan"]
    first = starts[0][0]
    assert [s[0] for s in starts] == list(range(first, first + len(starts))), starts
    assert [s[0] for s in stops] == list(range(first, first + len(stops))), stops
    assert 0 <= len(starts) - len(stops) <= 1, (starts, stops)
    assert max(s[1] for s in stops) >= 2 * COMMON, stops


def test_hits_tell_the_story():
    with Daemon() as d:
        try:
            probes = Probes(d.process.pid, PROGRAM, "userksm")
        except Refused as e:
            skip(f"{e}; the notes are there")
        hits = probes.hits
        victims = [Victim(d) for _ in range(2)]
        for v in victims:
            v.do("map", "m", COMMON + ZERO)
            v.do("fill", "m", 0, COMMON, 1000)
            v.do("fill", "m", COMMON, ZERO, 0)
        until(lambda: len(probes.look()["ksm_enter"]) == 2, 30, "two processes enter")
        client = {pid: number for number, pid in hits["ksm_enter"]}
        assert set(client) == {v.pid for v in victims}, (client, [v.pid for v in victims])

        first = {v: address(v, "m") for v in victims}
        def all_merged():
            probes.look()
            return all(pages_of(hits["ksm_merge_with_ksm_page"], client[v.pid], 1) == set(range(first[v], first[v] + COMMON)) and
                       pages_of(hits["ksm_merge_one_page"], client[v.pid], 0) == set(range(first[v] + COMMON, first[v] + COMMON + ZERO))
                       for v in victims)
        until(all_merged, 30, "a hit for each page that is merged, and no other page")
        merges = [h for h in hits["ksm_merge_with_ksm_page"] if h[4] == 0]
        where = {item: (ksm_page, page) for ksm_page, page, item, _, _ in merges}
        assert len({ksm_page for ksm_page, _ in where.values()}) == COMMON, "two processes share each shared page"
        assert all(ksm_page >> 32 for ksm_page, _ in where.values()), "segments have numbers from 1 on"

        a = victims[0]
        a.do("poke", "m", 5, POKED)
        poked = set(range(first[a] + 5, first[a] + 5 + POKED))
        until(lambda: {where[item][1] for ksm_page, item, c in probes.look()["ksm_remove_rmap_item"]
                       if c == client[a.pid] and where[item][0] == ksm_page} >= poked, 30, "a hit for each page written")

        d.ctl("set", "advisor_mode=scan-time", "advisor_min_pages_to_scan=777")
        assert not hits["ksm_advisor"], hits["ksm_advisor"]
        until(lambda: probes.look()["ksm_advisor"], 30, "the advisor has set pages_to_scan")
        d.ctl("set", "run=0")
        seconds, pages, percent = probes.look()["ksm_advisor"][-1]
        assert d.ctl("get", "pages_to_scan").stdout.strip() == str(pages) and 777 <= pages <= 30000, (pages, d.ctl("get").stdout)
        assert seconds >= 1 and 1 <= percent <= 10000, (seconds, percent)
        d.ctl("set", "run=1", "advisor_mode=none")

        for v in victims:
            v.quit()
        gone = {ksm_page for ksm_page, _ in where.values()}
        until(lambda: {p for p, in probes.look()["ksm_remove_ksm_page"]} >= gone, 30, "a hit for each shared page that goes")
        until(lambda: len(probes.look()["ksm_exit"]) == 2, 30, "two processes leave")
        assert sorted(hits["ksm_exit"]) == sorted((number, pid) for pid, number in client.items()), hits["ksm_exit"]
        test_scans_follow_each_other(probes)
        print("  " + ", ".join(f"{name} {len(found)}" for name, found in hits.items()))


if __name__ == "__main__":
    if platform.machine() != "x86_64":
        skip("registers are those of x86-64")
    if os.environ.get("USERKSM_PROBES") == "0":
        skip("built with -Dprobes=false")
    run(test_notes_are_what_the_header_says, test_hits_tell_the_story)
