/* The session's entry process: runs the rows of a table one after another, each in a folder and a process group of its own
 * and with a limit (a third argument: seconds). A row is a line `NAME PROGRAM ARG…`. Prints `NAME| start PID`, what the program prints with
 * `NAME| ` in front, `NAME| end STATUS`. */
#include "bypass.h"
#include <poll.h>
#include <time.h>

static long limit_ms = 150000;

static long now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void relay(const char *name, int from, pid_t child)
{
    char buffer[4096], line[4096];
    size_t used = 0;
    long end = now_ms() + limit_ms;
    for (;;) {
        struct pollfd ready = {from, POLLIN, 0};
        long left = end - now_ms();
        if (left <= 0 || poll(&ready, 1, left) <= 0) {
            say("%s| = still running", name);
            kill(-child, SIGKILL);
            return;
        }
        ssize_t count = read(from, buffer, sizeof buffer);
        if (count <= 0)
            return;
        for (ssize_t i = 0; i < count; i++) {
            if (buffer[i] != '\n' && used < sizeof line - 1) {
                line[used++] = buffer[i];
                continue;
            }
            line[used] = 0;
            say("%s| %.900s", name, line);
            used = 0;
        }
    }
}

static void row(const char *base, char *line)
{
    char *words[32];
    int count = 0, ends[2], state = 0;
    for (char *word = strtok(line, " \n"); word != NULL && count < 31; word = strtok(NULL, " \n"))
        words[count++] = word;
    words[count] = NULL;
    if (count < 2)
        return;
    char folder[512], program[512];
    snprintf(folder, sizeof folder, "%s/%s", base, words[0]);
    snprintf(program, sizeof program, DIR "/%s", words[1]);
    mkdir(folder, 0755);
    step(pipe2(ends, O_CLOEXEC), "pipe");
    pid_t child = step(fork(), "fork");
    if (child == 0) {
        setpgid(0, 0);
        if (chdir(folder) != 0)
            _exit(96);
        dup2(ends[1], 1);
        execve(program, words + 1, env_none);
        say("= the attack itself: errno %d", errno);
        _exit(95);
    }
    close(ends[1]);
    long started = now_ms();
    say("%s| start %d", words[0], child);
    relay(words[0], ends[0], child);
    close(ends[0]);
    kill(-child, SIGKILL);
    while (waitpid(child, &state, 0) < 0 && errno == EINTR)
        ;
    say("%s| end %d after %ld ms", words[0], state, now_ms() - started);
}

int main(int argc, char **argv)
{
    char line[1024];
    if (argc < 3)
        return 64;
    if (argc > 3)
        limit_ms = 1000 * atol(argv[3]);
    FILE *table = fopen(argv[1], "re");
    if (table == NULL)
        return 66;
    mkdir(argv[2], 0755);
    while (fgets(line, sizeof line, table) != NULL)
        row(argv[2], line);
    return 0;
}
