/* how HOW: the same program started from every kind of task. */
#include "bypass.h"
#include <spawn.h>

static void run(void)
{
    execve(RAN, argv_ran, env_none);
}

static void *in_thread(void *none)
{
    (void)none;
    run();
    failed();
}

static void thread(void)
{
    pthread_t other;
    if (pthread_create(&other, NULL, in_thread, NULL) != 0)
        failed();
    pause();
}

static void vforked(void)
{
    int state = 0;
    pid_t child = vfork();
    if (child == 0) {
        execve(RAN, argv_ran, env_none);
        _exit(errno == EPERM ? 71 : 72);
    }
    waitpid(child, &state, 0);
    _exit(WEXITSTATUS(state));
}

static void spawned(void)
{
    int state = 0;
    pid_t child;
    errno = posix_spawn(&child, RAN, NULL, NULL, argv_ran, env_none);
    if (errno != 0)
        failed();
    waitpid(child, &state, 0);
    _exit(WEXITSTATUS(state));
}

/* The grandchild writes its result down: it is nobody's child any more. */
static void daemonised(void)
{
    int ends[2], code = -1;
    char byte;
    if (pipe(ends) != 0)
        failed();
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            int state = 0;
            pid_t child = fork();
            if (child == 0) {
                run();
                _exit(errno == EPERM ? 71 : 72);
            }
            waitpid(child, &state, 0);
            byte = WEXITSTATUS(state);
            _exit(write(ends[1], &byte, 1) != 1);
        }
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], &byte, 1) == 1)
        code = byte;
    _exit(code);
}

static int first(void *none)
{
    (void)none;
    run();
    return errno == EPERM ? 71 : 72;
}

static void pid_namespace(void)
{
    static char stack[1 << 16];
    int state = 0;
    pid_t child = clone(first, stack + sizeof stack, CLONE_NEWPID | SIGCHLD, NULL);
    if (child < 0)
        failed();
    waitpid(child, &state, 0);
    _exit(WEXITSTATUS(state));
}

static void jail(void)
{
    if (mkdir("jail", 0755) != 0 || mkdir("jail/lib", 0755) != 0)
        failed();
    copy(RAN, "jail/lib/ran");
    if (chroot("jail") != 0)
        failed();
    execve("/lib/ran", argv_ran, env_none);
}

int main(int argc, char **argv)
{
    (void)argc;
    attempt(is(argv, "thread")          ? thread
            : is(argv, "vfork")         ? vforked
            : is(argv, "posix_spawn")   ? spawned
            : is(argv, "daemonised")    ? daemonised
            : is(argv, "pid_namespace") ? pid_namespace
            : is(argv, "chroot")        ? jail
                                        : run);
}
