/* Prints the table of fault points, a line each: side, name, what has just happened. First the size of a struct fault_page. */
#include <stdio.h>

#include "common/fault.h"

int main(void) {
        static const char *const sides[] = { [FAULT_AGENT] = "agent", [FAULT_DAEMON] = "daemon", [FAULT_CALL] = "call" };
        printf("%zu\n", sizeof(struct fault_page));
        for (unsigned i = 0; i < FAULT_MAX_; i++)
                printf("%s %s %s\n", sides[fault_table[i].side], fault_table[i].name, fault_table[i].text);
        return 0;
}
