/* What the bypass programs share. Each tries one way past Guard and prints what came of it as `= RESULT`:
 * `errno N` (the exec failed), `ran CODE`, `killed SIGNAL`, or a word. `pid N` names a process that the test should
 * count as its own. DIR holds what root installed and policy trusts; the working folder is the session's own. */
#ifndef BYPASS_H
#define BYPASS_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIR "/usr/local/lib/guard-bypass"
/* The program that is to run: it exits with 42, so that `ran 42` means that it, and nothing else, ran. */
#define RAN DIR "/ran"

extern char **environ;
static char *const argv_ran[] __attribute__((unused)) = {"ran", NULL};
static char *const env_none[] __attribute__((unused)) = {"PATH=/usr/bin:/bin", NULL};

__attribute__((unused)) static void say(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length < 0)
        return;
    if ((size_t)length > sizeof line - 2)
        length = sizeof line - 2;
    line[length] = '\n';
    if (write(1, line, length + 1) < 0)
        _exit(99);
}

/* Ends the program with one result. */
__attribute__((unused, noreturn)) static void result(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    say("= %s", text);
    exit(0);
}

/* A step that must work for the attack to be one; a refused step is a result of its own: `STEP errno N`. */
__attribute__((unused)) static long step(long value, const char *name)
{
    if (value < 0)
        result("%s errno %d", name, errno);
    return value;
}

__attribute__((unused, noreturn)) static void status(int status)
{
    if (WIFSIGNALED(status))
        result("killed %d", WTERMSIG(status));
    result("ran %d", WEXITSTATUS(status));
}

static int failure = -1;

/* In the child of attempt(): says with which errno the exec failed. */
__attribute__((unused, noreturn)) static void failed(void)
{
    int why = errno;
    if (write(failure, &why, sizeof why) < 0)
        _exit(98);
    _exit(97);
}

/* Lets a child try, and reports. The child returns from `act` only when its exec failed. */
__attribute__((unused, noreturn)) static void attempt(void (*act)(void))
{
    int pipe_ends[2], why = 0, state = 0;
    step(pipe2(pipe_ends, O_CLOEXEC), "pipe");
    fflush(NULL);
    pid_t child = step(fork(), "fork");
    if (child == 0) {
        close(pipe_ends[0]);
        failure = pipe_ends[1];
        act();
        failed();
    }
    close(pipe_ends[1]);
    say("pid %d", child);
    ssize_t told = read(pipe_ends[0], &why, sizeof why);
    while (waitpid(child, &state, 0) < 0 && errno == EINTR)
        ;
    if (told == sizeof why)
        result("errno %d", why);
    status(state);
}

/* A copy of a file in the session's own folder. */
__attribute__((unused)) static void copy(const char *from, const char *to)
{
    static char buffer[1 << 16];
    int in = step(open(from, O_RDONLY | O_CLOEXEC), "open");
    int out = step(open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755), "create");
    ssize_t count;
    while ((count = read(in, buffer, sizeof buffer)) > 0)
        step(write(out, buffer, count), "write");
    close(in);
    close(out);
}

__attribute__((unused)) static long exec_at(int dir, const char *path, char *const *argv, char *const *env, int flags)
{
    return syscall(SYS_execveat, dir, path, argv, env, flags);
}

/* The variant that the table names. */
__attribute__((unused)) static int is(char **argv, const char *word)
{
    return argv[1] != NULL && strcmp(argv[1], word) == 0;
}

#endif
