/* race WHAT WHO TRIES: execs of the payload while another thread keeps rewriting what it is called with.
 * WHAT: `argv` or `env` (the bytes), `border` (the same bytes, now arguments, now environment).
 * WHO: `leader` (the first thread execs) or `thread` (another one does).
 * Prints `try PID STATUS SHOWN`: what the payload shows is what ran. */
#include "bypass.h"

static char word[] = "WORD=AAAAAAAA";
static char *racing_argv[5] = {"ran", "show", word, NULL, NULL};
static char *racing_env[3] = {word, NULL, NULL};
static const char *what;

/* Each state lasts over a point where the thread can be interrupted. Without that an emulated processor, which is interrupted
 * between blocks of code only, shows others nearly always the last state of the loop. */
static void last(void)
{
    for (volatile int i = 0; i < 200; i++)
        ;
}

__attribute__((noreturn)) static void *rewrite(void *none)
{
    (void)none;
    for (;;) {
        if (*what == 'b') {
            ((char *volatile *)racing_argv)[2] = word;
            ((char *volatile *)racing_env)[0] = NULL;
            last();
            ((char *volatile *)racing_argv)[2] = NULL;
            ((char *volatile *)racing_env)[0] = word;
            last();
        } else {
            memset(word + 5, 'B', 8);
            __asm__ volatile("" ::: "memory");
            last();
            memset(word + 5, 'A', 8);
            __asm__ volatile("" ::: "memory");
            last();
        }
    }
}

__attribute__((noreturn)) static void *run(void *none)
{
    (void)none;
    execve(RAN, racing_argv, racing_env);
    _exit(errno == EPERM ? 71 : 72);
}

static void child(int out, int in_thread)
{
    pthread_t other;
    dup2(out, 1);
    if (pthread_create(&other, NULL, in_thread ? run : rewrite, NULL) != 0)
        _exit(73);
    if (in_thread)
        rewrite(NULL);
    run(NULL);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 64;
    what = argv[1];
    int in_thread = strcmp(argv[2], "thread") == 0, tries = atoi(argv[3]);
    if (*what == 'a')
        racing_env[0] = NULL;
    if (*what == 'e')
        racing_argv[2] = NULL;
    for (int i = 0; i < tries; i++) {
        int ends[2], state = 0;
        char shown[600];
        size_t used = 0;
        ssize_t count;
        step(pipe2(ends, O_CLOEXEC), "pipe");
        pid_t pid = step(fork(), "fork");
        if (pid == 0)
            child(ends[1], in_thread);
        close(ends[1]);
        while (used < sizeof shown - 1 && (count = read(ends[0], shown + used, sizeof shown - 1 - used)) > 0)
            used += count;
        while (used > 0 && shown[used - 1] == '\n')
            used--;
        shown[used] = 0;
        close(ends[0]);
        while (waitpid(pid, &state, 0) < 0 && errno == EINTR)
            ;
        say("try %d %d %s", pid, state, used ? shown : "-");
    }
    result("raced");
}
