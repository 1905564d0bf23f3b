/* The main thread ends by pthread_exit, the last thread by returning: the process must end, atexit handlers run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *word) {
        printf("%s\n", word);
        fflush(stdout);
}

static void at_exit(void) {
        say("atexit");
}

static void *in_thread(void *mode) {
        if (strcmp(mode, "fork") != 0) {
                usleep(300000); /* the main thread has ended by then, on any machine that is not stuck; else nothing is shown */
                say("thread");
                return NULL;
        }
        pid_t pid = fork();
        if (pid == 0) {
                say("child");
                return NULL; /* the only thread of the child */
        }
        int status = 1;
        if (waitpid(pid, &status, 0) != pid || status)
                _exit(1);
        say("parent");
        return NULL;
}

int main(int argc, char **argv) {
        pthread_t t;
        if (argc != 2 || atexit(at_exit) || pthread_create(&t, NULL, in_thread, argv[1]))
                return 1;
        pthread_detach(t);
        pthread_exit(NULL);
}
