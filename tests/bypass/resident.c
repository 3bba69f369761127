/* resident HOW: the argument lies on a page that is not in memory when the kernel and the daemon want it. */
#include "bypass.h"

#define WORD "resident-word"

static char *word;

static void run(void)
{
    char *const argv[] = {"ran", word, NULL};
    execve(RAN, argv, env_none);
}

static char *mapped(void)
{
    static char page[4096] = WORD;
    int file = step(open("page", O_RDWR | O_CREAT | O_TRUNC, 0644), "create");
    step(write(file, page, sizeof page), "write");
    fsync(file);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED)
        result("mmap errno %d", errno);
    return at;
}

int main(int argc, char **argv)
{
    (void)argc;
    if (is(argv, "untouched")) {
        word = mapped();
    } else if (is(argv, "dontneed")) {
        word = mapped();
        if (strcmp(word, WORD) != 0)
            result("not mapped");
        step(madvise(word, 4096, MADV_DONTNEED), "madvise");
    } else if (is(argv, "fuse")) {
        /* A page that a process outside is slow to give. */
        int file = step(open("/srv/foreign/slow", O_RDONLY | O_CLOEXEC), "open");
        word = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
        if (word == MAP_FAILED)
            result("mmap errno %d", errno);
    } else {
        word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (word == MAP_FAILED)
            result("mmap errno %d", errno);
        strcpy(word, WORD);
        /* Written to the disk first, then given up. */
        unsigned char there = 1;
        for (int i = 0; i < 200 && (there & 1); i++) {
            step(madvise(word, 4096, MADV_PAGEOUT), "madvise");
            usleep(20000);
            step(mincore(word, 4096, &there), "mincore");
        }
        if (there & 1)
            result("not swapped out");
    }
    attempt(run);
}
