/* uffd: the argument lies on a page that another thread of the attacker fills when it likes: whoever reads it waits. */
#include "bypass.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

static char *page;

static void *tease(void *of)
{
    int fd = *(int *)of;
    struct uffd_msg message;
    /* The fault is taken note of and never answered. */
    while (read(fd, &message, sizeof message) > 0)
        ;
    pause();
    return NULL;
}

static void run(void)
{
    static int fd;
    struct uffdio_api api = {.api = UFFD_API};
    pthread_t other;
    fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0)
        failed();
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register registered = {{(uintptr_t)page, 4096}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (ioctl(fd, UFFDIO_API, &api) != 0 || ioctl(fd, UFFDIO_REGISTER, &registered) != 0)
        failed();
    pthread_create(&other, NULL, tease, &fd);
    char *const argv[] = {"ran", page, NULL};
    execve(RAN, argv, env_none);
}

int main(void)
{
    attempt(run);
}
