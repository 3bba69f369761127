/* swaps PROGRAM EVIL: a copy of PROGRAM for each way to change a file, started and held for a person; once there is a file `go`
 * (the test has seen that all are held) each copy is attacked in its way for some seconds. Prints `HOW swap RESULT` and `HOW exec RESULT`.
 * swaps PROGRAM EVIL other FILE: only the attack, on a file that another session is about to run. */
#include "bypass.h"

#define TRIES 25
#define PAUSE_US 200000

static const char *evil;
static char own[256], other_name[300];
static int early = -1;
static char *mapped;

/* Writes the other program over what is behind a descriptor. */
static int overwrite(int file)
{
    static char buffer[1 << 16];
    int from = open(evil, O_RDONLY | O_CLOEXEC);
    ssize_t count, done = 0;
    if (lseek(file, 0, SEEK_SET) != 0)
        return -1;
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        if ((done = write(file, buffer, count)) < 0)
            break;
    close(from);
    return done < 0 ? -1 : 0;
}

static int by_name(const char *name, int flags)
{
    int file = open(name, O_WRONLY | O_CLOEXEC | flags);
    if (file < 0)
        return -1;
    int done = overwrite(file);
    int why = errno;
    close(file);
    errno = why;
    return done;
}

static int renamed(void)
{
    char next[300];
    snprintf(next, sizeof next, "%s.next", own);
    copy(evil, next);
    return rename(next, own);
}

static int again(void)
{
    if (unlink(own) != 0)
        return -1;
    copy(evil, own);
    return 0;
}

static int change(const char *how)
{
    if (strcmp(how, "write") == 0)
        return by_name(own, 0);
    if (strcmp(how, "write_truncated") == 0)
        return by_name(own, O_TRUNC);
    if (strcmp(how, "truncate") == 0)
        return truncate(own, 10);
    if (strcmp(how, "link") == 0)
        return by_name(other_name, 0);
    if (strcmp(how, "rename") == 0)
        return renamed();
    if (strcmp(how, "unlink") == 0)
        return again();
    if (strcmp(how, "times") == 0)
        return utimensat(AT_FDCWD, own, NULL, 0);
    if (strcmp(how, "early_descriptor") == 0)
        return overwrite(early);
    if (strcmp(how, "early_mapping") == 0) {
        memset(mapped, 0, 4096);
        return 0;
    }
    return 0;
}

static void prepare(const char *how)
{
    if (strcmp(how, "link") == 0) {
        snprintf(other_name, sizeof other_name, "%s.link", own);
        step(link(own, other_name), "link");
    }
    if (strncmp(how, "early", 5) == 0)
        early = step(open(own, O_RDWR | O_CLOEXEC), "open");
    if (strcmp(how, "early_mapping") == 0) {
        mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, early, 0);
        close(early);
    }
}

static void attack(const char *how)
{
    while (access("go", F_OK) != 0)
        usleep(50000);
    for (int i = 0; i < TRIES; i++) {
        usleep(PAUSE_US);
        if (change(how) == 0) {
            say("%s swap done", how);
            return;
        }
    }
    say("%s swap errno %d", how, errno);
}

static void held(const char *program, const char *how)
{
    int ends[2], why = 0, state = 0;
    snprintf(own, sizeof own, "%s/%s", getcwd(NULL, 0), how);
    copy(program, own);
    prepare(how);
    step(pipe2(ends, O_CLOEXEC), "pipe");
    pid_t child = step(fork(), "fork");
    if (child == 0) {
        char **argv = calloc(17, sizeof *argv);
        argv[0] = "ran";
        if (strcmp(how, "two_mb") == 0) {
            char *text = malloc(131001);
            memset(text, 'x', 131000);
            text[131000] = 0;
            for (int i = 1; i < 16; i++)
                argv[i] = text;
        }
        execve(own, argv, env_none);
        why = errno;
        _exit(write(ends[1], &why, sizeof why) != sizeof why);
    }
    close(ends[1]);
    attack(how);
    ssize_t told = read(ends[0], &why, sizeof why);
    waitpid(child, &state, 0);
    if (told == sizeof why)
        say("%s exec errno %d", how, why);
    else
        say("%s exec ran %d", how, WIFEXITED(state) ? WEXITSTATUS(state) : -1);
}

int main(int argc, char **argv)
{
    static const char *const ways[] = {"write", "write_truncated", "truncate",         "link",         "rename",
                                       "unlink", "times",          "early_descriptor", "early_mapping", "two_mb",
                                       "nothing", "outside_writer"};
    if (argc < 3)
        return 64;
    evil = argv[2];
    if (argc > 4) {
        strncpy(own, argv[4], sizeof own - 1);
        for (int i = 0; i < 5; i++)
            say("other swap %s %d", by_name(own, 0) == 0 ? "done" : "errno", errno);
        return 0;
    }
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (fork() == 0) {
            held(argv[1], ways[i]);
            exit(0);
        }
    while (wait(NULL) > 0)
        ;
    return 0;
}
