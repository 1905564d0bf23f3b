/* libfuse with the version of its interface that all of us use. */
#pragma once

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
