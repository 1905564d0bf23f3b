/* Runs a fuzz target over the files of corpus directories, so that every finding stays a test of the normal suite with
 * any compiler. Fails when there are none: a replay of nothing proves nothing. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_MAX_BYTES (1 << 20)

static int replay(const char *directory, const char *name) {
        static uint8_t input[INPUT_MAX_BYTES];
        char path[4096];
        size_t size;
        FILE *f;

        if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int) sizeof(path))
                return -1;
        f = fopen(path, "re");
        if (!f) {
                perror(path);
                return -1;
        }
        size = fread(input, 1, sizeof(input), f);
        fclose(f);
        LLVMFuzzerTestOneInput(input, size);
        return 0;
}

static int replay_all(const char *directory, unsigned *n) {
        DIR *d = opendir(directory);
        const struct dirent *entry;
        int r = 0;

        if (!d) {
                perror(directory);
                return -1;
        }
        while (r == 0 && (entry = readdir(d))) {
                if (entry->d_name[0] == '.')
                        continue;
                r = replay(directory, entry->d_name);
                ++*n;
        }
        closedir(d);
        return r;
}

int main(int argc, char **argv) {
        unsigned n = 0;

        if (argc < 2) {
                fprintf(stderr, "usage: %s CORPUS-DIRECTORY...\n", argv[0]);
                return EXIT_FAILURE;
        }
        for (int i = 1; i < argc; i++)
                if (replay_all(argv[i], &n) < 0)
                        return EXIT_FAILURE;
        printf("%u inputs replayed\n", n);
        return n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
