/* Runs a fuzz target over the files of a corpus directory, so that every finding stays a test of the normal suite with
 * any compiler. Fails when the corpus is empty: a replay of nothing proves nothing. */
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

int main(int argc, char **argv) {
        const struct dirent *entry;
        unsigned n = 0;
        DIR *d = argc == 2 ? opendir(argv[1]) : NULL;

        if (!d) {
                fprintf(stderr, "usage: %s CORPUS-DIRECTORY\n", argv[0]);
                return EXIT_FAILURE;
        }
        while ((entry = readdir(d))) {
                if (entry->d_name[0] == '.')
                        continue;
                if (replay(argv[1], entry->d_name) < 0)
                        return EXIT_FAILURE;
                n++;
        }
        closedir(d);
        printf("%u inputs replayed\n", n);
        return n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
