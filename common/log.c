#include "common/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One line, one write(2): long enough for any of ours, below PIPE_BUF so that a pipe does not tear it. */
#define LOG_LINE_BYTES 1024

static atomic_int max_level = LOG_INFO;
static bool to_journal;

/* $JOURNAL_STREAM is "device:inode" of the journal's stream; it also reaches programs whose stderr went elsewhere. */
static void detect_journal(void) {
        unsigned long long device, inode;
        struct stat st;
        const char *e = getenv("JOURNAL_STREAM");
        if (e && sscanf(e, "%llu:%llu", &device, &inode) == 2 && fstat(STDERR_FILENO, &st) == 0)
                to_journal = st.st_dev == device && st.st_ino == inode;
}

void log_set_max_level(int level) {
        atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

int log_get_max_level(void) {
        return atomic_load_explicit(&max_level, memory_order_relaxed);
}

__attribute__((format(printf, 2, 0))) static void log_lineva(int level, const char *format, va_list ap) {
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        char line[LOG_LINE_BYTES];
        size_t n = 0;
        pthread_once(&once, detect_journal);
        if (to_journal)
                n = (size_t) snprintf(line, sizeof(line), "<%d>", level);
        int k = vsnprintf(line + n, sizeof(line) - n - 1, format, ap);
        if (k < 0)
                return;
        n = (size_t) k < sizeof(line) - n - 1 ? n + (size_t) k : sizeof(line) - 2;
        /* Text from clients (comm, labels) may hold anything: it must not forge a line or a priority prefix. */
        for (size_t i = 0; i < n; i++)
                if ((unsigned char) line[i] < ' ' || line[i] == 0x7f)
                        line[i] = '?';
        line[n++] = '\n';
        while (write(STDERR_FILENO, line, n) < 0 && errno == EINTR)
                ;
}

void log_line(int level, const char *format, ...) {
        if (level > log_get_max_level())
                return;
        int saved = errno;
        va_list ap;
        va_start(ap, format);
        log_lineva(level, format, ap);
        va_end(ap);
        errno = saved;
}

int log_full_errno(int level, int error, const char *format, ...) {
        error = abs(error);
        if (level <= log_get_max_level()) {
                char text[LOG_LINE_BYTES / 2];
                va_list ap;
                va_start(ap, format);
                (void) vsnprintf(text, sizeof(text), format, ap);
                va_end(ap);
                log_line(level, "%s: %s", text, strerror(error));
        }
        return -error;
}
