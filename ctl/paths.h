/* Where the other parts are: beside ksmctl in a build tree, else where they were installed. */
#pragma once

#include <limits.h>

/* Absolute path of the shim / the daemon / userksm-sysfs / what is preloaded beside it. 0, or -ENOENT with the places that were tried in ret (for a message). */
int find_shim(char ret[PATH_MAX]);
int find_daemon(char ret[PATH_MAX]);
int find_sysfs_server(char ret[PATH_MAX]);
int find_sysfs_library(char ret[PATH_MAX]);
