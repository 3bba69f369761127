/* at HOW: every form of execveat. */
#include "bypass.h"

#define AT_EXECVE_CHECK 0x10000

static int file;
static const char *path = "";
static int flags;

static void run(void)
{
    if (exec_at(file, path, argv_ran, env_none, flags) == 0)
        _exit(7); /* only checked */
}

int main(int argc, char **argv)
{
    (void)argc;
    int dir = step(open(DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
    file = step(open(RAN, O_RDONLY | O_CLOEXEC), "open");
    if (is(argv, "empty")) {
        flags = AT_EMPTY_PATH;
    } else if (is(argv, "opath")) {
        file = step(open(RAN, O_PATH | O_CLOEXEC), "open");
        flags = AT_EMPTY_PATH;
    } else if (is(argv, "dir")) {
        file = dir;
        path = "ran";
    } else if (is(argv, "dir_nofollow")) {
        file = dir;
        path = "ran";
        flags = AT_SYMLINK_NOFOLLOW;
    } else if (is(argv, "link")) {
        symlink(RAN, "link");
        file = AT_FDCWD;
        path = "link";
    } else if (is(argv, "link_nofollow")) {
        symlink(RAN, "link");
        file = AT_FDCWD;
        path = "link";
        flags = AT_SYMLINK_NOFOLLOW;
    } else if (is(argv, "absolute")) {
        file = -77;
        path = RAN;
    } else if (is(argv, "no_flag")) {
        flags = 0x40000000 | AT_EMPTY_PATH;
    } else if (is(argv, "check")) {
        flags = AT_EMPTY_PATH | AT_EXECVE_CHECK;
    } else if (is(argv, "script_fd")) {
        file = step(open(DIR "/script", O_RDONLY), "open");
        flags = AT_EMPTY_PATH;
    } else if (is(argv, "script_fd_cloexec")) {
        file = step(open(DIR "/script", O_RDONLY | O_CLOEXEC), "open");
        flags = AT_EMPTY_PATH;
    } else if (is(argv, "script_dir")) {
        file = step(open(DIR, O_RDONLY | O_DIRECTORY), "open");
        path = "script";
    }
    attempt(run);
}
