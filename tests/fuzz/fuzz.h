/* The entry point that libFuzzer calls, and that replay.c calls with each file of a corpus. */
#pragma once

#include <stddef.h>
#include <stdint.h>

__attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
