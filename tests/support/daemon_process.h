/* A real userksmd for a test written in C, and the two kinds of peer that the tests play. Everything ends the test (cmocka
 * assertion) when it cannot do its work; every wait has a bound. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/counters.h"
#include "proto/channel.h"

/* No wait for a result takes longer, however busy the machine. */
#define TEST_BOUND_MSEC 30000

struct daemon_process {
        pid_t pid;
        char directory[64], socket[108], log[96];
};

/* Path of the program, once, from main. */
void daemon_program(const char *path);
const char *daemon_program_path(void);
/* Starts it on a socket of its own with the further arguments (NULL at the end; may be NULL) and waits until it answers. */
void daemon_start(struct daemon_process *d, const char *const *arguments);
/* Starts it and waits for its end; its exit status. Its output is in the log. */
int daemon_run(struct daemon_process *d, const char *const *arguments);
/* SIGTERM; asserts that it leaves with status 0 within the bound. */
void daemon_stop(struct daemon_process *d);
/* Waits for its end by itself; exit status, or 128 + signal. */
int daemon_wait(struct daemon_process *d);
/* Lines of its log that contain the text; whole log on stderr with daemon_print_log. */
unsigned daemon_log_lines(const struct daemon_process *d, const char *text);
void daemon_wait_log(const struct daemon_process *d, const char *text, unsigned at_least);
void daemon_print_log(const struct daemon_process *d);
unsigned daemon_count_fds(const struct daemon_process *d);

/* Blocking sockets with a receive timeout of the bound. */
int peer_connect(const struct daemon_process *d);
/* connect + ADMIN_HELLO, and the welcome. */
int admin_connect(const struct daemon_process *d, struct msg_admin_welcome *ret);
/* connect + HELLO with this process's own pagemap and mem, and the welcome; its userfaultfd device in *ret_device unless
 * NULL. */
int agent_connect(const struct daemon_process *d, uint32_t *ret_client, int *ret_device);
/* HELLO only. */
void agent_send_hello(int fd, const struct msg_hello *hello, int pagemap_fd, int mem_fd);

/* The next frame from the daemon, asserted to be of the type (0 = any). Answers PINGs in between unless one is asked for. */
void receive_frame(int fd, enum message_type type, struct channel_message *ret);
/* The daemon closes this connection, after REFUSED if error != 0, and sends nothing else but PINGs. */
void expect_closed(int fd, int error);
void get_counters(int admin_fd, struct counters *ret);
/* A request answered by ADMIN_DONE. */
void admin_request(int admin_fd, enum message_type type, const void *body, struct msg_admin_done *ret);
