/* memfd at | path: a program in memory that no file system holds. */
#include "bypass.h"

static int program;
static char path[64];

static void at(void)
{
    exec_at(program, "", argv_ran, env_none, AT_EMPTY_PATH);
}

static void by_path(void)
{
    execve(path, argv_ran, env_none);
}

int main(int argc, char **argv)
{
    (void)argc;
    static char buffer[1 << 16];
    program = step(memfd_create("program", 0), "memfd_create");
    int from = step(open(RAN, O_RDONLY), "open");
    ssize_t count;
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        step(write(program, buffer, count), "write");
    /* Written through one descriptor and run through another, so that no writer is in the way. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    int reader = step(open(path, O_RDONLY), "open again");
    close(program);
    program = reader;
    snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    attempt(is(argv, "at") ? at : by_path);
}
