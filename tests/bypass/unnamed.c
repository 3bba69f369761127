/* unnamed deleted | tmpfile: files of the session that have no name any more, or never had one. */
#include "bypass.h"

static int program;

static void at(void)
{
    exec_at(program, "", argv_ran, env_none, AT_EMPTY_PATH);
}

int main(int argc, char **argv)
{
    (void)argc;
    if (is(argv, "deleted")) {
        copy(RAN, "gone");
        program = step(open("gone", O_RDONLY | O_CLOEXEC), "open");
        step(unlink("gone"), "unlink");
    } else {
        static char buffer[1 << 16];
        char path[64];
        int file = open(".", O_TMPFILE | O_RDWR, 0755), from = step(open(RAN, O_RDONLY), "open");
        /* An overlay has such files since 6.3 only, memory has them on all. */
        if (file < 0 && errno == EOPNOTSUPP)
            file = open("/dev/shm", O_TMPFILE | O_RDWR, 0755);
        step(file, "O_TMPFILE");
        ssize_t count;
        while ((count = read(from, buffer, sizeof buffer)) > 0)
            step(write(file, buffer, count), "write");
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
        program = step(open(path, O_RDONLY | O_CLOEXEC), "open again");
        close(file);
    }
    attempt(at);
}
