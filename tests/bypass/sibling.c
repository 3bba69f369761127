/* sibling HOW: while an exec of one process is held for a person, its sibling tries to write into its memory.
 * HOW: `writev` (process_vm_writev), `mem` (/proc/PID/mem), `seize` (ptrace). */
#include "bypass.h"
#include <sys/ptrace.h>

static char word[] = "made-by-held";

int main(int argc, char **argv)
{
    (void)argc;
    int wrote = 0, why = 0;
    pid_t held = step(fork(), "fork");
    if (held == 0) {
        char *const mkdir_argv[] = {"mkdir", word, NULL};
        execve("/usr/bin/mkdir", mkdir_argv, env_none);
        _exit(errno == EPERM ? 71 : 72);
    }
    say("pid %d", held);
    for (int i = 0; i < 50 && !wrote; i++) {
        if (is(argv, "writev")) {
            struct iovec from = {"evil", 4}, to = {word, 4};
            wrote = process_vm_writev(held, &from, 1, &to, 1, 0) == 4;
        } else if (is(argv, "mem")) {
            char path[64];
            snprintf(path, sizeof path, "/proc/%d/mem", held);
            int memory = open(path, O_RDWR | O_CLOEXEC);
            wrote = memory >= 0 && pwrite(memory, "evil", 4, (off_t)(uintptr_t)word) == 4;
        } else {
            wrote = ptrace(PTRACE_SEIZE, held, 0, 0) == 0;
        }
        why = errno;
        usleep(10000);
    }
    if (wrote)
        result("wrote");
    int state = 0;
    waitpid(held, &state, 0);
    result("errno %d, then ran %d", why, WEXITSTATUS(state));
}
