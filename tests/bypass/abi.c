/* abi int80 | x32 | x32_at | native_number: the exec calls of other ABIs, whose entries nobody announces. */
#include "bypass.h"

static long number;
static char *low;

static void int80(void)
{
    /* Pointers must fit 32 bits. */
    uint32_t *argv = (uint32_t *)(low + 1024);
    argv[0] = (uint32_t)(uintptr_t)low;
    argv[1] = 0;
    argv[2] = 0;
    long value = 11;
    __asm__ volatile("int $0x80"
                     : "+a"(value)
                     : "b"((uint32_t)(uintptr_t)low), "c"((uint32_t)(uintptr_t)argv),
                       "d"((uint32_t)(uintptr_t)(argv + 2))
                     : "memory", "r8", "r9", "r10", "r11");
    errno = -value;
}

static void x32(void)
{
    if (number == 545)
        syscall(0x40000000 | number, AT_FDCWD, RAN, argv_ran, env_none, 0);
    else
        syscall(0x40000000 | number, RAN, argv_ran, env_none);
}

int main(int argc, char **argv)
{
    (void)argc;
    if (is(argv, "int80")) {
        low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        if (low == MAP_FAILED)
            result("mmap errno %d", errno);
        strcpy(low, RAN);
        attempt(int80);
    }
    number = is(argv, "x32") ? 520 : is(argv, "x32_at") ? 545 : 59;
    attempt(x32);
}
