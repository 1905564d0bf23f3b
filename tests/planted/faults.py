"""The faults: one for each step of each transition, for each invariant, and for each check that stands between a peer and the books.

`old` occurs exactly once in `file`; `new` takes its place. `tests` are tried in this order: names of meson tests, or of TESTS below."""
import dataclasses

# Tests that are not one meson test: what to run, from the root of the source.
TESTS = {
    "torture 20 s": ["tests/e2e/test_shim_torture.py", "--seconds=20", "--delay-usec=2000", "--regions=2"],
    "chaos 20 s": ["tests/e2e/test_shim_torture.py", "--chaos", "--seconds=20", "--delay-usec=500"],
}
LIB = ("transitions", "discards", "hostile", "remerge", "fork")
SHIM = ("torture 20 s", "chaos 20 s")


@dataclasses.dataclass
class Fault:
    name: str
    breaks: str
    text: str
    file: str
    old: str
    new: str
    tests: tuple


FAULTS = [
    # -- merge and zero, step by step (lib/hole.c, lib/place.c) --------------------------------------------------------------
    Fault("merge-skips-compare", "I1, 6.1 step 3", "unequal pages are replaced", "lib/place.c",
          "        return memcmp(bytes, d->t->a->expected + ((size_t) i << KSM_PAGE_SHIFT), KSM_PAGE_SIZE) == 0;",
          "        return bytes && i < BLOCK_PAGES;", LIB + SHIM),
    Fault("zero-skips-compare", "I1, 6.2 step 3", "pages that are not zero become holes", "lib/place.c",
          "                return is_zero(bytes);", "                return is_zero(bytes) || bytes;", LIB + SHIM),
    Fault("zero-compares-half", "I1, 6.2 step 3", "only half of a page must be zero", "lib/place.c",
          "memcmp(p, p + 8, KSM_PAGE_SIZE - 8) == 0", "memcmp(p, p + 8, KSM_PAGE_SIZE / 2) == 0", LIB + SHIM),
    Fault("merge-compares-half", "I1, 6.1 step 3", "only half of a page must be equal", "lib/place.c",
          "a->expected + ((size_t) i << KSM_PAGE_SHIFT), KSM_PAGE_SIZE) == 0;",
          "a->expected + ((size_t) i << KSM_PAGE_SHIFT), KSM_PAGE_SIZE / 2) == 0;", LIB + SHIM),
    Fault("move-is-trusted", "I1, 6.1 step 2", "a move that failed is believed to have moved nothing", "lib/hole.c",
          "                left &= ~in_scratch(a);\n                if (left != before)",
          "                if (r == -EAGAIN)\n                        left &= ~in_scratch(a);\n                if (left != before)",
          LIB + SHIM),
    Fault("nothing-moved-back", "I1, 6.1 step 4", "unequal pages stay in scratch", "lib/hole.c",
          "        move_back(d, moved & ~placed);\n", "", LIB),
    Fault("scratch-kept", "I1, 6.1 step 5", "what one transition left in scratch is taken for the next one's", "lib/hole.c",
          "        a->scratch_used = true;\n", "", ("hostile", "exhaust-agent")),
    Fault("changed-not-given-back", "I7, 6.1 step 4", "a page whose mapping was changed past the lock is taken for gone", "lib/hole.c",
          "        int r = context_copy(&a->guard, page_address(d->t->base, i), scratch_address(a, i));", "        int r = a->raw ? 0 : -ENOENT;",
          ("hostile",)),
    Fault("copied-into-anything", "I7, 6.1 step 4", "a page goes back into a mapping that was made meanwhile", "lib/hole.c",
          "        int r = context_copy(&a->guard, page_address(d->t->base, i), scratch_address(a, i));",
          "        (void) context_register(&a->guard, page_address(d->t->base, i), page_address(d->t->base, i + 1), UFFDIO_REGISTER_MODE_MISSING);\n"
          "        int r = context_copy(&a->guard, page_address(d->t->base, i), scratch_address(a, i));", ("hostile",)),
    Fault("no-drain-before-place", "I7, 6.1 step 5", "a discard during the transition is overlooked", "lib/hole.c",
          "        agent_drain(a);\n        equal &= ~t->removed;\n", "", LIB + ("shim-raw",) + SHIM),
    Fault("no-wake", "6.1 step 5", "accesses that waited are not woken", "lib/transition.c",
          "        context_wake(&t->a->guard, start, end);\n", "", LIB),
    Fault("hole-kept-armed", "6.1 step 4", "what was not replaced stays in the guard", "lib/hole.c",
          "                (void) context_unregister_surely(&a->guard, start, end);\n", "", LIB),
    Fault("not-shared", "I7, 6.1 step 4", "merged pages are not watched for discards and writes", "lib/place.c",
          "        if (context_register_surely(&a->shared, start, end, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR) < 0)",
          "        if (start > end)", LIB + ("accounting",)),
    Fault("wrong-slot-mapped", "I1, 6.1 step 4", "the segment's page before the asked one is mapped", "lib/place.c",
          "(uint64_t) d->slot[at] << KSM_PAGE_SHIFT);\n        if (sys_is_error(r))",
          "(uint64_t) (d->slot[at] ? d->slot[at] - 1 : 0) << KSM_PAGE_SHIFT);\n        if (sys_is_error(r))", LIB),
    Fault("dontfork-lost", "I7", "MADV_DONTFORK is lost where a page is merged", "lib/place.c",
          "        if (rangeset_overlaps(&a->dontfork, start, end))", "        if (start > end && a)",
          LIB + ("shim-fork", "shim-calls")),
    Fault("merges-unregistered", "I7", "memory that is not registered is merged when the daemon says so", "lib/transition.c",
          "                if (!rangeset_contains(&a->ranges, start, end) || rangeset_overlaps(&a->excluded, start, end))",
          "                if (rangeset_overlaps(&a->excluded, start, end))", LIB + SHIM),
    Fault("merges-excluded", "I7", "mlocked and other excluded memory is merged", "lib/transition.c",
          "                if (!rangeset_contains(&a->ranges, start, end) || rangeset_overlaps(&a->excluded, start, end))",
          "                if (!rangeset_contains(&a->ranges, start, end))", LIB + ("shim-calls",) + SHIM),
    Fault("no-exclusive-again", "6.1 step 2", "a page once shared by a fork is never certified again", "lib/hole.c",
          "if (make_exclusive(a, page_address(base, (unsigned) __builtin_ctzll(first))))", "if (false)",
          LIB + ("shim-fork", "accounting")),
    Fault("no-watchdog", "6.1 step 2", "nobody ends an endless UFFDIO_MOVE", "lib/hole.c",
          "                watch_begin(&a->watch);\n", "", LIB),
    Fault("merges-while-raw", "I7", "a process that changes mappings without libc is not left alone", "lib/transition.c",
          "        if (a->raw && kind != APPLY_RESTORE) {", "        if (false) {", LIB + ("shim-raw",)),

    # -- the mapping lock (lib/maplock.c, lib/preload/) ---------------------------------------------------------------------
    Fault("lock-ignores-holders", "I7, 6.0", "transitions run while threads are inside mapping calls", "lib/maplock.c",
          "        while (map_lock_any_inside()) {", "        while (false) {", LIB + SHIM),
    Fault("lock-without-barrier", "I7, 6.0", "no membarrier between raising the agent's flag and looking at the threads'", "lib/maplock.c",
          "        if (sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0, 0, 0, 0) < 0) {", "        if (false) {",
          ("mailbox",) + LIB + SHIM),
    Fault("munmap-unlocked", "I7, 6.0", "munmap does not take the mapping lock", "lib/preload/mapping.c",
          "SHIM_EXPORT int munmap(void *addr, size_t length) {\n        enter();\n        int r = REAL(munmap)(addr, length);\n",
          "SHIM_EXPORT int munmap(void *addr, size_t length) {\n        int r = REAL(munmap)(addr, length);\n        enter();\n",
          ("shim-calls",) + SHIM),
    Fault("munmap-unnoted", "I7", "the agent is not told of unmapped ranges", "lib/preload/mapping.c",
          "        if (r == 0) {\n                struct span span = span_touched(addr, length);\n                note_unmapped(span.start, span.end);\n"
          "        }\n        leave();\n        return r;\n}\n\nstatic void *mmap_common",
          "        leave();\n        return r;\n}\n\nstatic void *mmap_common", ("shim-calls", "sharing", "accounting") + SHIM),
    Fault("mremap-unrestored", "I7, 6.4", "mremap meets merged pages", "lib/preload/remap.c",
          "        else\n                left = enter_restored(r.old, end);", "        else\n                enter();",
          ("shim-calls",) + SHIM),
    Fault("realloc-unrestored", "I7, 6.4", "realloc lets libc mremap merged pages", "lib/preload/alloc.c",
          "        if (enter_restored(span.start, span.end) != 0) {", "        enter();\n        if (span.start > span.end) {",
          ("shim-calls",) + SHIM),
    Fault("free-advice-unrestored", "I7, 6.4", "MADV_FREE meets merged pages", "lib/preload/advise.c",
          "        case MADV_FREE:\n", "", ("shim-calls",) + SHIM),
    Fault("wipeonfork-merged", "I7, 6.4", "MADV_WIPEONFORK memory stays merged", "lib/preload/advise.c",
          "        case MADV_WIPEONFORK:\n", "", ("shim-calls", "shim-fork") + SHIM),
    Fault("mlock-not-excluded", "I7, 6.4", "mlocked memory stays merged", "lib/preload/mapping.c",
          "SHIM_EXPORT int mlock(const void *addr, size_t length) {\n        exclude(span_touched(addr, length));\n",
          "SHIM_EXPORT int mlock(const void *addr, size_t length) {\n", ("shim-calls", "accounting")),
    Fault("uffd-not-released", "I7, 6.4", "the program's own userfaultfd is refused on registered memory", "lib/preload/control.c",
          "                (void) REQUEST(agent_release(reg.range.start, reg.range.len));", "                ;", ("shim-calls",)),

    # -- discards (lib/events.c, lib/book.c) ----------------------------------------------------------------------------------
    Fault("discard-forgotten", "I7, 6.4", "a discarded merged page reads as the segment again", "lib/book.c",
          "        b->removed |= removed;\n", "", ("discards", "accounting") + SHIM),
    Fault("removed-continued", "I7, 6.4", "a fault on a discarded page maps the segment", "lib/events.c",
          "        else if (is_removed(address))\n                (void) zero_page(a, address);\n        else {",
          "        else {", ("discards", "accounting") + SHIM),
    Fault("answers-into-guard", "I1, 6.4", "an old fault message is answered inside a block in transition", "lib/events.c",
          "        if (a->current && address - a->current->base < BLOCK_BYTES)\n                ;\n        else if",
          "        if", ("discards", "hostile") + SHIM),
    Fault("marker-left", "I7, 6.4", "a discarded page keeps its write protection marker", "lib/events.c",
          "        (void) context_writeprotect(&a->shared, address, address + KSM_PAGE_SIZE, false);\n        int r = context_zeropage",
          "        int r = context_zeropage", ("discards", "accounting")),
    Fault("raw-not-noticed", "I7, 6.0", "a discard outside libc is taken for one inside", "lib/events.c",
          "        if (!map_lock_any_inside() && map_lock_exits() == a->exits_before_read)\n                a->raw = true;\n", "",
          ("shim-raw",)),
    Fault("guard-discard-lost", "I7, 6.1", "a discard of a page in transition is not remembered", "lib/events.c",
          "                        a->current->removed |= 1ULL << i;", "                        ;", LIB + ("shim-raw",) + SHIM),

    # -- fork (lib/fork.c) ----------------------------------------------------------------------------------------------------
    Fault("fork-unlocked", "I7, 6.4", "a fork may copy a hole", "lib/fork.c",
          "        map_enter();\n        prepared = true;\n", "        prepared = false;\n", ("fork", "shim-fork") + SHIM),
    Fault("fork-child-zeros", "I7, 6.4", "a child reads the segment where its parent had discarded", "lib/fork.c",
          "                for (unsigned i = 0, n; next_run(removed, &i, &n); i += n)\n                        (void) fork_child_discard",
          "                for (unsigned i = 64, n; next_run(removed, &i, &n); i += n)\n                        (void) fork_child_discard",
          ("fork", "discards", "shim-fork") + SHIM),
    Fault("child-unwatched", "I7, 6.4", "a child without a daemon keeps merged pages that nobody watches", "lib/fork.c",
          "                        (void) mailbox_call(&unshare, 0);", "                        ;", ("fork", "shim-fork", "shim-daemon")),

    # -- segments (daemon/sys/segment.c) --------------------------------------------------------------------------------------
    Fault("segment-unsealed", "I2", "segments stay writable for whoever holds an fd", "daemon/sys/segment.c",
          "F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK", "F_SEAL_GROW | F_SEAL_SHRINK", ("segment", "daemon_merge")),
    Fault("segment-shrinks", "I2", "segments can be truncated", "daemon/sys/segment.c",
          "F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK", "F_SEAL_FUTURE_WRITE | F_SEAL_GROW", ("segment", "daemon_merge")),
    Fault("segment-writable-fd", "I2", "clients get a writable fd", "daemon/sys/segment.c",
          "open(path, O_RDONLY | O_CLOEXEC)", "open(path, O_RDWR | O_CLOEXEC)", ("segment", "daemon_merge")),
    Fault("segment-mode", "I2", "another user may reopen a segment's fd", "daemon/sys/segment.c",
          "fchmod(fd, SEGMENT_MODE) < 0 ||", "fchmod(fd, 0606) < 0 ||", ("segment", "daemon_merge")),
    Fault("segment-unsealed-full", "I2", "a full segment is never sealed for good", "daemon/sys/segment.c",
          "F_SEAL_WRITE | F_SEAL_SEAL", "F_SEAL_GROW", ("segment", "daemon_merge")),

    # -- domains (daemon/sys/peer.c) ------------------------------------------------------------------------------------------
    Fault("domain-without-uid", "I4", "users share a domain", "daemon/sys/peer.c",
          '"uid=%u\\nlabel=%s\\nscope=%.*s\\nunit=%s", p->uid, label,', '"uid=%u\\nlabel=%s\\nscope=%.*s\\nunit=%s", 0U, label,',
          ("peer", "sharing")),
    Fault("domain-without-unit", "I4", "root's services share a domain", "daemon/sys/peer.c",
          "cgroup_unit_template(path, length, unit, sizeof(unit)) < 0)", "false)", ("peer", "sharing")),
    Fault("setuid-accepted", "I4", "setuid programs may register", "daemon/sys/peer.c",
          '        else if (status_has_other_ids(text))\n                *ret_reason = "setuid or setgid program";\n',
          "", ("peer", "daemon_protocol")),

    # -- the codec (proto/codec.c) --------------------------------------------------------------------------------------------
    Fault("frame-size-unchecked", "strict decoding", "a frame may be longer than its message", "proto/codec.c",
          "            size != sizeof(header) + shape->body_bytes + (size_t) header.count * shape->element_bytes)",
          "            size < sizeof(header) + shape->body_bytes)", ("codec", "fuzz_codec_corpus", "daemon_protocol")),
    Fault("frame-fds-unchecked", "strict decoding", "a frame may carry any number of fds", "proto/codec.c",
          "        if (n_fds != shape->fds)\n                return CODEC_FDS;\n", "", ("codec", "daemon_protocol")),
    Fault("frame-role-unchecked", "strict decoding", "an agent may send what only an administrator may", "proto/codec.c",
          "if (!shape || !(shape->senders & sender))", "if (!shape)", ("codec", "daemon_protocol")),
    Fault("extent-across-blocks", "strict decoding", "an extent may leave its block", "proto/codec.c",
          " || (end - 1) >> BLOCK_SHIFT != block)", ")", ("codec", "hostile")),
]
