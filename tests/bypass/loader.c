/* loader direct | hard_link | copy | renamed: the dynamic loader started as a program, which then runs what it likes. */
#include "bypass.h"

#define LOADER "/lib64/ld-linux-x86-64.so.2"

static char *name = LOADER;

static void run(void)
{
    char *const argv[] = {"ran", "/usr/bin/true", NULL};
    execve(name, argv, env_none);
}

int main(int argc, char **argv)
{
    (void)argc;
    if (is(argv, "hard_link")) {
        char *real = realpath(LOADER, NULL);
        if (real == NULL)
            result("realpath errno %d", errno);
        step(link(real, "tool"), "link");
        name = "./tool";
    } else if (is(argv, "copy")) {
        copy(LOADER, "tool");
        name = "./tool";
    } else if (is(argv, "other_folder")) {
        name = DIR "/not-a-loader";
    }
    attempt(run);
}
