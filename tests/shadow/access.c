/* Accesses that may fault, and digests of memory that may not be there. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/shadow/shadow.h"

struct guard {
        sigjmp_buf env;
        volatile bool armed;
        volatile int fault;
};
static __thread struct guard guard;

static void on_fault(int number, siginfo_t *info, void *context) {
        (void) context;
        if (guard.armed && (number == SIGSEGV || number == SIGBUS)) {
                guard.armed = false;
                guard.fault = number * 16 + (info->si_code & 15);
                siglongjmp(guard.env, 1);
        }
        atomic_store(&run.control->failed, 1);
        char text[128];
        int n = snprintf(text, sizeof(text), "shadow: signal %d at %p, operation about %u\n", number, info->si_addr,
                         atomic_load(&run.control->turn));
        (void) !write(2, text, (size_t) n);
        _exit(3);
}

void access_init(void) {
        static const int numbers[] = { SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGABRT };
        struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
        for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
                check(sigaction(numbers[i], &sa, NULL) == 0, "sigaction");
}

/* 0, or what the access raised. */
#define GUARDED(statement)                            \
        ({                                            \
                guard.fault = 0;                      \
                if (sigsetjmp(guard.env, 0) == 0) {   \
                        guard.armed = true;           \
                        statement;                    \
                        guard.armed = false;          \
                }                                     \
                guard.fault;                          \
        })

int guarded_load(uint8_t *to, const uint8_t *from, size_t bytes) {
        if (bytes == 1)
                return GUARDED(*to = *(const volatile uint8_t *) from);
        return GUARDED(memcpy(to, from, bytes));
}

int guarded_store(uint8_t *to, const uint8_t *from, size_t bytes) {
        if (bytes == 1)
                return GUARDED(*(volatile uint8_t *) to = *from);
        return GUARDED(memcpy(to, from, bytes));
}

int guarded_raise(int number) {
        return GUARDED(raise(number));
}

/* In pieces that cross no page on either side, so that what a fault leaves is the same each time. */
int guarded_copy(uint8_t *to, const uint8_t *from, size_t bytes) {
        while (bytes) {
                size_t a = PAGE - ((uintptr_t) to & (PAGE - 1)), b = PAGE - ((uintptr_t) from & (PAGE - 1));
                size_t piece = a < b ? a : b;
                piece = piece < bytes ? piece : bytes;
                int fault = guarded_store(to, from, piece);
                if (fault)
                        return fault;
                to += piece, from += piece, bytes -= piece;
        }
        return 0;
}

__attribute__((noinline)) uint64_t digest_bytes(uint64_t h, const void *p, size_t bytes) {
        const uint8_t *b = p;
        uint64_t v;
        for (; bytes >= 8; bytes -= 8, b += 8) {
                memcpy(&v, b, 8);
                h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
                h ^= h >> 29;
        }
        for (; bytes; bytes--, b++)
                h = (h ^ *b) * 1099511628211ULL;
        return h;
}

__attribute__((noinline)) static int digest_page(uint64_t *h, const uint8_t *p, size_t bytes) {
        return GUARDED(*h = digest_bytes(*h, p, bytes));
}

uint64_t digest_memory(const void *memory, size_t bytes) {
        const uint8_t *p = memory;
        uint64_t h = 1469598103934665603ULL;
        while (bytes) {
                size_t piece = PAGE - ((uintptr_t) p & (PAGE - 1));
                piece = piece < bytes ? piece : bytes;
                int fault = digest_page(&h, p, piece);
                if (fault)
                        h = (h ^ (unsigned) fault) * 1099511628211ULL;
                p += piece, bytes -= piece;
        }
        return h;
}
