/* What realloc does to merged blocks. Two programs of this kind hold the same bytes; each says how many pages of its blocks lie in
 * segments before and after, and compares every byte.
 *
 * usage: test_shim_realloc BYTES NEW_BYTES; a line on stdin goes on */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCKS 16
#define PAGE 4096ULL
#define MAPPED_BYTES (1U << 20) /* well beyond M_MMAP_THRESHOLD */
#define PAGEMAP_FILE (1ULL << 61)

static uint8_t byte_of(unsigned block, size_t i) {
        return (uint8_t) (block * 37 + i / 61 + 1);
}

/* Whole pages of the blocks only: the others share theirs with libc's headers. */
static unsigned merged(uint8_t *const *blocks, size_t bytes) {
        int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        unsigned n = 0;
        for (unsigned b = 0; b < BLOCKS; b++) {
                uint64_t first = ((uint64_t) blocks[b] + PAGE - 1) / PAGE, end = ((uint64_t) blocks[b] + bytes) / PAGE, entry;
                for (uint64_t page = first; page < end; page++)
                        n += pread(fd, &entry, sizeof(entry), (off_t) (page * 8)) == sizeof(entry) && entry & PAGEMAP_FILE;
        }
        close(fd);
        return n;
}

static int differs(uint8_t *const *blocks, size_t bytes) {
        for (unsigned b = 0; b < BLOCKS; b++)
                for (size_t i = 0; i < bytes; i++)
                        if (blocks[b][i] != byte_of(b, i))
                                return 1;
        return 0;
}

/* New memory of a block that has a mapping of its own comes from the kernel. The page that both sizes share is left out. */
static int exposes(uint8_t *const *blocks, size_t bytes, size_t new_bytes) {
        for (unsigned b = 0; bytes >= MAPPED_BYTES && b < BLOCKS; b++)
                for (size_t i = bytes + PAGE; i < new_bytes; i++)
                        if (blocks[b][i])
                                return 1;
        return 0;
}

int main(int argc, char **argv) {
        size_t bytes = argc == 3 ? strtoul(argv[1], NULL, 0) : 0, new_bytes = argc == 3 ? strtoul(argv[2], NULL, 0) : 0;
        if (!bytes || !new_bytes)
                return 64;
        uint8_t *blocks[BLOCKS];
        for (unsigned b = 0; b < BLOCKS; b++) {
                blocks[b] = malloc(bytes);
                if (!blocks[b])
                        return 1;
                for (size_t i = 0; i < bytes; i++)
                        blocks[b][i] = byte_of(b, i);
        }
        printf("ready\n");
        fflush(stdout);
        (void) getchar();
        size_t kept = bytes < new_bytes ? bytes : new_bytes;
        unsigned before = merged(blocks, kept);
        for (unsigned b = 0; b < BLOCKS; b++) {
                blocks[b] = realloc(blocks[b], new_bytes);
                if (!blocks[b])
                        return 1;
        }
        unsigned after = merged(blocks, kept);
        printf("%u %u %s\n", before, after,
               differs(blocks, kept) ? "different" : exposes(blocks, bytes, new_bytes) ? "exposed" : "equal");
        return 0;
}
