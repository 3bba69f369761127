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

/* Bit 62 of the page's entry in pagemap: not in the task's page tables any more, but in swap space. */
static int is_swapped(const void *page)
{
    uint64_t entry = 0;
    int map = step(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "pagemap");
    step(pread(map, &entry, sizeof entry, (uintptr_t)page / 4096 * 8), "pagemap");
    close(map);
    return entry >> 62 & 1;
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
        int swapped = 0;
        for (int i = 0; i < 100 && !swapped; i++) {
            step(madvise(word, 4096, MADV_PAGEOUT), "madvise");
            usleep(20000);
            swapped = is_swapped(word);
        }
        if (!swapped)
            result("not swapped out");
    }
    attempt(run);
}
