/* A 32-bit program. Without arguments it exits with 42; with one it starts the payload by its own system call. */
__attribute__((noreturn)) void leave(int code)
{
    __asm__ volatile("int $0x80" ::"a"(1), "b"(code));
    __builtin_unreachable();
}

__attribute__((used)) void begin(long *stack)
{
    static char path[] = "/usr/local/lib/guard-bypass/ran";
    static char *argv[] = {path, 0};
    if (stack[0] < 2)
        leave(42);
    long value = 11;
    __asm__ volatile("int $0x80" : "+a"(value) : "b"(path), "c"(argv), "d"(argv + 1) : "memory");
    leave(value == -1 ? 71 : 72);
}

__asm__(".globl _start\n_start:\n mov %esp, %eax\n push %eax\n call begin\n");
