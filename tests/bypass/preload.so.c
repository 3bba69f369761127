/* Loaded into an allowed program by LD_PRELOAD: ends it with 43 before it has begun. */
#include <unistd.h>

__attribute__((constructor)) static void begin(void)
{
    _exit(43);
}
