/* Writes the seed corpus of fuzz_codec: one small valid frame of each type. Run by hand after a change of the protocol:
 * seed_codec tests/fuzz/corpus/codec */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/frames.h"

int main(int argc, char **argv) {
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        uint64_t state = 1;

        if (argc != 2) {
                fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
                return EXIT_FAILURE;
        }
        for (const uint16_t *t = message_types; *t; t++) {
                uint8_t first = (uint8_t) (message_senders(*t) << 4 | message_fds(*t));
                size_t size = random_frame(packet, *t, 2, &state);
                char path[4096];
                FILE *f;

                snprintf(path, sizeof(path), "%s/%s", argv[1], message_name(*t));
                f = fopen(path, "we");
                if (!f || fputc(first, f) == EOF || fwrite(packet, 1, size, f) != size || fclose(f) != 0) {
                        perror(path);
                        return EXIT_FAILURE;
                }
        }
        return EXIT_SUCCESS;
}
