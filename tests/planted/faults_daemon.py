"""Faults in the daemon around the books: what it reads and writes, whom it lets in, what it hands out, what it takes over."""
from fault import Fault

MERGE = ("daemon_merge", "sharing", "accounting")
PROTOCOL = ("daemon_protocol",)

DAEMON_FAULTS = [
    # -- reading, hashing, publishing ---------------------------------------------------------------------------------------
    Fault("publishes-another-page", "I5", "a slot gets the page behind the one it is for", "daemon/scanner.c",
          "reader_read_exact(j->process, publish->pages[i], slot) < 0)", "reader_read_exact(j->process, publish->pages[i] + 1, slot) < 0)", MERGE),
    Fault("publishes-into-another-slot", "I2", "a slot that is shared already is written", "daemon/scanner.c",
          "                uint8_t *slot = slots + publish->slots[i] * KSM_PAGE_SIZE;", "                uint8_t *slot = slots + (publish->slots[i] & ~1U) * KSM_PAGE_SIZE;", MERGE),
    Fault("publishes-after-failure", "I5", "a slot that could not be read into counts as good", "daemon/scanner.c",
          "                if (reader_read_exact(j->process, publish->pages[i], slot) < 0)\n                        continue;\n",
          "                (void) reader_read_exact(j->process, publish->pages[i], slot);\n", MERGE),
    Fault("hashes-unread", "I5", "pages that could not be read are hashed", "daemon/scanner.c",
          "                        if (!scratch->ok[k])\n                                continue;\n", "", ("client_memory", "daemon_merge", "sharing", "shim-daemon")),
    Fault("walks-the-dying", "5.2", "the page tables of a process that exits are walked", "daemon/scanner.c",
          "        if (atomic_load_explicit(&j->process->closing, memory_order_relaxed) || process_has_exited(j->process)) {", "        if (false) {",
          ("client_memory", "daemon_merge", "sharing")),
    Fault("late-reader-believed", "7", "what a reader that hung brings in the end is used", "daemon/scanner.c",
          "                results = none;\n", "                ;\n", ("daemon_merge")),
    Fault("reads-one-further", "5.2", "pages behind one that cannot be read get each other's bytes", "daemon/sys/reader.c",
          "                i += done < run ? done + 1 : done;", "                i += done;\n                if (!done)\n                        i += run;", ("client_memory",)),
    Fault("reads-to-the-front", "5.2", "what the slow path reads lands where the fast path's pages are", "daemon/sys/reader.c",
          "buffer + done * KSM_PAGE_SIZE, ok + done);", "buffer, ok + done);", ("client_memory",)),
    Fault("reads-a-reused-pid", "I4", "memory is read by a pid that may name another process", "daemon/sys/process.c",
          "        return p->pidfd >= 0 && poll(&fd, 1, 0) > 0;", "        return p->pidfd >= 0 && poll(&fd, 1, 0) < 0;", ("client_memory", "daemon_merge")),
    Fault("reads-setuid-programs", "8", "a client's process is read by pid after an exec of a setuid program", "daemon/sys/reader.c",
          "        if (!is_its_users) {", "        if (false) {", ("malice",)),
    Fault("publishes-by-pid", "I4", "what is published is read by pid, after an exec from the new program", "daemon/sys/reader.c",
          "        ssize_t n = pread(p->mem_fd, to, KSM_PAGE_SIZE, (off_t) (page << KSM_PAGE_SHIFT));",
          "        struct iovec local = { to, KSM_PAGE_SIZE }, remote = { (void *) (uintptr_t) (page << KSM_PAGE_SHIFT), KSM_PAGE_SIZE };\n"
          "        ssize_t n = process_vm_readv(p->pid, &local, 1, &remote, 1, 0);", ("client_memory",) + MERGE),
    Fault("zeros-by-half", "5.2", "a page that is half zeros is taken for zeros", "daemon/sys/digest.c",
          "(const uint8_t *) page + sizeof(first), KSM_PAGE_SIZE - sizeof(first)) == 0;", "(const uint8_t *) page + sizeof(first), KSM_PAGE_SIZE / 2) == 0;", ("segment",) + MERGE),
    Fault("hash-by-half", "5.2", "half of a page is hashed", "daemon/sys/digest.c", "XXH3_64bits_withSecret(page, KSM_PAGE_SIZE, s->bytes", "XXH3_64bits_withSecret(page, KSM_PAGE_SIZE / 2, s->bytes", ("segment",) + MERGE),
    Fault("hash-without-secret", "I4", "all domains hash alike", "daemon/sys/digest.c", "XXH3_64bits_withSecret(page, KSM_PAGE_SIZE, s->bytes, sizeof(s->bytes))", "(s ? XXH3_64bits(page, KSM_PAGE_SIZE) : 0)", ("segment",) + MERGE),
    Fault("secret-not-drawn", "I4", "a domain's secret is the same each time", "daemon/store.c", "                int r = digest_secret_draw(&d->secret);", "                int r = 0;", ("store", "segment") + MERGE),
    Fault("scan-without-present", "5.2", "scans install markers for holes", "daemon/sys/pagemap.c", "PAGE_IS_PRESENT | PAGE_IS_WPALLOWED |", "PAGE_IS_WPALLOWED |", ("client_memory",) + MERGE),

    # -- segments -------------------------------------------------------------------------------------------------------------
    Fault("segment-freed-in-use", "I2", "a segment is unmapped while it is written to", "daemon/store.c", "        if (s->n_pins > 0 || !(s->free_wanted", "        if (!(s->free_wanted", ("store",) + MERGE),
    Fault("segment-grows", "I2", "segments can be made longer", "daemon/sys/segment.c", "#define SEALS_OPEN (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)", "#define SEALS_OPEN (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK)", ("segment",) + MERGE),
    Fault("segment-never-dropped", "I3", "clients keep the fds of segments that are gone", "daemon/manager.c",
          "                        client_drop_segment(m, segment_event.segment);\n", "                        ;\n", MERGE + ("recovery",)),
    Fault("runs-of-strangers", "I4", "a process may report runs of another domain's segment", "daemon/client.c",
          "                if (s && s->domain == c->domain) /* I4 */", "                if (s)", ("recovery")),

    # -- taking over (segment.c, recover.c, passed.c) -----------------------------------------------------------------------------
    ] + [Fault(name, "I2, I4, 7", text, f"daemon/{file}", old, new, ("segment", "recovery")) for name, text, file, old, new in (
        ("takes-over-files", "a file that is no memfd is taken over", "sys/segment.c", "        if (seals < 0 || !S_ISREG(st->st_mode))", "        if (!S_ISREG(st->st_mode))"),
        ("takes-over-strangers", "a segment that another user made is taken over", "sys/segment.c", "        if (st->st_uid != geteuid())\n                return \"not made by this user\";\n", ""),
        ("takes-over-unsealed", "a segment whose bytes may change is taken over", "sys/segment.c", " || (seals & SEALS_OPEN) != SEALS_OPEN ||", " ||"),
        ("takes-over-open-mode", "a segment that others may open for writing is taken over", "sys/segment.c", "        if ((st->st_mode & 07777) != SEGMENT_MODE || (seals", "        if ((seals"),
        ("takes-over-writable", "a writable fd is taken over and handed to clients", "sys/segment.c", " || (flags & O_ACCMODE) != O_RDONLY)", " || flags < 0)"),
        ("takes-over-unlabelled", "a memfd that is no segment is taken over", "sys/segment.c", "        if (memcmp(label->magic, label_magic, sizeof(label_magic)) != 0)\n                return \"no segment of userksm\";\n", ""),
        ("takes-over-versions", "a segment of another version is taken over", "sys/segment.c", "        if (label->version != LABEL_VERSION)\n                return \"made by another version\";\n", ""),
        ("takes-over-wrong-sizes", "a label that does not fit its file is believed", "sys/segment.c", " || (uint64_t) st->st_size != (label->n_slots + 1) * KSM_PAGE_SIZE)", ")"),
        ("takes-over-long-keys", "a label with a key longer than its room is believed", "sys/segment.c", "label->key_size == 0 ||\n            label->key_size > SEGMENT_KEY_BYTES ||", "label->key_size == 0 ||"),
        ("rehash-skipped", "slots are taken over without their hashes", "recover.c", "segment, slot + i, digest_page(&domain->secret, page)) == 0)", "segment, slot + i, (slot + i) * 0x9e3779b97f4a7c15ULL) == 0)"),
        ("unwritten-taken-over", "slots that were never written are shared", "recover.c", "                        if (!digest_page_is_zero(page) &&\n", "                        if (page &&\n"),
        ("lone-keys-kept", "the segments of a process that shares with nobody are offered to the next daemon", "store.c", "                if (!peer_key_lasts(key, key_size))\n                        key_size = 0;\n", ""),
        ("store-keeps-dropped", "the service manager keeps segments that are gone", "store.c", "                if (segment->is_kept)\n                        notify_forget_fd(segment->segment->inode);\n", ""),
        ("store-keeps-refused", "the service manager keeps what is not taken over", "recover.c", "                        notify_forget_fd(st.st_ino);", "                        ;"),
        ("label-writable", "the label stays writable", "sys/segment.c", "        (void) munmap(label, KSM_PAGE_SIZE);\n", "        ;\n"),
    )] + [

    # -- who may come in ---------------------------------------------------------------------------------------------------------
    Fault("domain-without-label", "I4", "processes with different security labels share a domain", "daemon/sys/peer.c", 'unit=%s", uid, label,', 'unit=%s", uid, "",', ("peer",)),
    Fault("domain-without-scope", "I4", "containers of one user share a domain", "daemon/sys/peer.c", "(int) scope_length, scope, unit);", "0, scope, unit);", ("peer", "sharing")),
    Fault("domain-of-the-dead", "I4", "the domain of a process that has ended is read from whoever has its pid now", "daemon/sys/peer.c",
          "sizeof(text)) >= 0 && peer_is_alive(p))\n                size", "sizeof(text)) >= 0)\n                size", ("peer",)),
    Fault("undumpable-accepted", "8", "processes that are not dumpable may register", "daemon/sys/peer.c", "        else if (st.st_uid != p->uid)\n                *ret_reason = \"not dumpable\";\n", "", ("peer",) + PROTOCOL),
    Fault("unprovable-accepted", "8", "a process of which nothing can be read may register", "daemon/sys/peer.c",
          "                *ret_reason = \"its /proc entry cannot be read\";", "                ;", ("peer",) + PROTOCOL),
    Fault("mem-of-another", "I4", "a process may pass the memory of another one", "daemon/sys/process.c",
          "        else if (pagemap_pid != mem_pid)\n                *ret_reason = \"descriptors of two different processes\";\n", "", ("client_memory",) + PROTOCOL),
    Fault("fd-of-anything", "I4", "any file of procfs is taken for a pagemap", "daemon/sys/process.c", "        if (!base || base == path || strcmp(base + 1, name) != 0)", "        if (!base || base == path)", ("client_memory",) + PROTOCOL),
    Fault("fd-outside-proc", "I4", "a file outside procfs is taken for a pagemap", "daemon/sys/process.c", "if (fstatfs(fd, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)", "if (fstatfs(fd, &fs) < 0)", ("client_memory",) + PROTOCOL),
    Fault("fd-writable", "I4", "a mem fd open for writing is taken", "daemon/sys/process.c", "        if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))", "        if (flags < 0)", ("client_memory",) + PROTOCOL),
    Fault("fd-of-a-task", "I4", "/proc/PID/task/TID/mem is taken", "daemon/sys/process.c", "        if (number - path >= 5 && strncmp(number - 5, \"/task\", 5) == 0)\n                return -EINVAL;\n", "", ("client_memory",) + PROTOCOL),
    Fault("fast-read-of-another", "I4", "a child that passes its parent's descriptors is read by its own pid", "daemon/sys/process.c",
          "p->pidfd < 0 || (unsigned long) peer->pid != pagemap_pid);", "p->pidfd < 0);", ("client_memory", "daemon_merge") + PROTOCOL),
    Fault("page-size-unchecked", "strict decoding", "a client with other pages may register", "daemon/client.c", "        if (hello->page_size != KSM_PAGE_SIZE) {", "        if (hello->page_size == 0) {", PROTOCOL),
    Fault("answer-to-nothing", "strict decoding", "an answer to a transition that was not asked for is believed", "daemon/client.c",
          "        if (find_apply(c, body->op) == c->n_applies)\n                violation(c, \"APPLIED for a transition that was not asked for\");\n        else if", "        if", PROTOCOL),
    Fault("pong-to-nothing", "strict decoding", "a PONG without a PING is accepted", "daemon/client.c", "                if (c->ping_usec == 0 || ((const struct msg_ping *) f->body)->cookie != c->ping_cookie)", "                if (c->ping_usec == 1)", PROTOCOL),
    Fault("silent-not-parked", "7", "a client that never answers is asked on and on", "daemon/client.c", "                set_parked(c, true);\n}", "                ;\n}", ("daemon_merge")),
    Fault("raw-not-parked", "I7", "a process that changes mappings without libc is still asked", "daemon/client.c", "                core_client_park(c->manager->core, c->id, true);\n                core_requests_cancel", "                core_requests_cancel", ("daemon_merge", "shim-raw")),
    Fault("users-unbounded", "7", "one user may take all connections", "daemon/session.c", "        if (a->n_sessions >= m->config.max_clients_per_uid || ", "        if (", PROTOCOL),
    Fault("strangers-set", "8", "every user may change tunables", "daemon/control.c", "static void set_tunable(struct session *s, const struct msg_tunable_set *body) {\n        if (!is_privileged(s)) {", "static void set_tunable(struct session *s, const struct msg_tunable_set *body) {\n        if (!s) {", PROTOCOL),
    Fault("strangers-unmerge", "8", "every user may merge and unmerge others", "daemon/control.c", "        unsigned n = 0;\n        if (!is_privileged(s)) {", "        unsigned n = 0;\n        if (!s) {", PROTOCOL),
    Fault("strangers-look", "8", "every user sees the clients of all", "daemon/control.c", "        bool all = is_privileged(s);", "        bool all = s;", PROTOCOL),
    Fault("socket-open", "8", "every user may connect", "daemon/listener.c", "umask(l->manager->config.open_to_all ? 0111 : 0117);", "umask(0111);", ("daemon_life", "daemon_protocol")),
    Fault("abstract-open", "8", "every user may connect to an abstract socket", "daemon/listener.c", "        l->is_closed_abstract = abstract && !l->manager->config.open_to_all;", "        l->is_closed_abstract = false;", ("daemon_life", "daemon_protocol")),
    Fault("sandbox-off", "8", "the daemon runs without its system call filter", "daemon/manager.c", "        if (m->config.sandbox) {", "        if (m->config.sandbox && m->stopping) {", ("daemon_life", "daemon_protocol", "service")),
    Fault("sandbox-open", "8", "the filter allows what it does not know", "daemon/sys/sandbox.c", "seccomp_init(SCMP_ACT_KILL_PROCESS)", "seccomp_init(SCMP_ACT_LOG)", ("sandbox",)),
    Fault("sandbox-executes", "8", "the filter allows executable mappings", "daemon/sys/sandbox.c", "SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));", "SCMP_SYS(mmap), 0);", ("sandbox",)),
    Fault("sandbox-writes", "8", "the filter allows opening files for writing", "daemon/sys/sandbox.c", "SCMP_SYS(openat), 1,\n                                     SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));", "SCMP_SYS(openat), 0);", ("sandbox",)),

    # -- the codec (proto/) --------------------------------------------------------------------------------------------------------
    ] + [Fault(name, "strict decoding", text, "proto/codec.c", old, new, ("codec", "fuzz_codec_corpus") + PROTOCOL) for name, text, old, new in (
        ("version-unchecked", "a frame of another version is decoded", "        if (header.version != PROTO_VERSION)\n                return CODEC_VERSION;\n", ""),
        ("reserved-unchecked", "reserved bits are ignored", "        if (header.reserved != 0)\n                return CODEC_RESERVED;\n", ""),
        ("extent-empty", "an APPLY without extents is decoded", "        if (f->count == 0)\n                return CODEC_VALUE;\n        block", "        block"),
        ("extents-overlap", "extents may overlap", "                next_page = end;\n", ""),
        ("slot-unbounded", "a slot beyond any segment is decoded", "                        if (extent[i].slot + extent[i].n_pages > SEGMENT_SLOTS_MAX)\n                                return CODEC_VALUE;\n", "                        ;\n"),
        ("runs-across-blocks", "a reported run may leave its block", "                if ((run[i].page + run[i].n_pages - 1) >> BLOCK_SHIFT != run[i].page >> BLOCK_SHIFT ||\n                    run", "                if (run"),
        ("runs-unbounded", "a run at a slot beyond any segment is decoded", " ||\n                    run[i].slot + run[i].n_pages > SEGMENT_SLOTS_MAX)", ")"),
        ("ranges-unbounded", "a range beyond the address space is decoded", "        return range_is_valid(start, length) && start + length <= ADDRESS_LIMIT;", "        return range_is_valid(start, length);"),
        ("fields-unchecked", "fields are not held against their bounds", "        return value >= rule->min && value <= rule->max ? CODEC_OK : CODEC_VALUE;", "        return value >= rule->min ? CODEC_OK : CODEC_VALUE;"),
    )] + [
]
