/* Any packet, any number of fds, any sender: the decoder neither crashes nor reads outside the packet, and what it
 * accepts is byte for byte what the encoder writes. Input: one byte (low 4 bits fds, high 4 bits roles), then the
 * packet, copied to a block of its exact size so that ASan sees one byte too far. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "proto/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static _Alignas(FRAME_ALIGN) uint8_t again[FRAME_MAX_BYTES];
        struct frame f;
        uint8_t *packet;

        if (size == 0 || size - 1 > FRAME_MAX_BYTES)
                return 0;
        packet = malloc(size - 1); /* malloc aligns to 16 */
        if (!packet)
                return 0;
        memcpy(packet, data + 1, size - 1);
        if (frame_decode(packet, size - 1, data[0] & 15, data[0] >> 4, &f) == CODEC_OK) {
                if (frame_encode(again, sizeof(again), f.type, f.body, f.elements, f.count) != size - 1 ||
                    memcmp(again, packet, size - 1) != 0)
                        abort();
        }
        free(packet);
        return 0;
}
