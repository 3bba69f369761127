/* named HOW: the payload, or a copy of it, by every kind of name. */
#include "bypass.h"

static char *name;

static void run(void)
{
    execve(name, argv_ran, env_none);
}

static void chain(int links)
{
    char from[64], to[64];
    step(symlink(RAN, "chain0"), "symlink");
    for (int i = 1; i < links; i++) {
        snprintf(from, sizeof from, "chain%d", i - 1);
        snprintf(to, sizeof to, "chain%d", i);
        step(symlink(from, to), "symlink");
    }
    name = strdup(links > 1 ? to : "chain0");
}

/* Beyond what a path can hold, folder by folder. */
static void deep(void)
{
    char folder[251];
    memset(folder, 'd', 250);
    folder[250] = 0;
    for (int i = 0; i < 20; i++) {
        step(mkdir(folder, 0755), "mkdir");
        step(chdir(folder), "chdir");
    }
    copy(RAN, "ran");
    name = "./ran";
}

int main(int argc, char **argv)
{
    (void)argc;
    static char text[8192];
    if (is(argv, "self_root")) {
        name = "/proc/self/root" RAN;
    } else if (is(argv, "self_cwd")) {
        step(chdir(DIR), "chdir");
        name = "/proc/self/cwd/ran";
    } else if (is(argv, "hard_link")) {
        /* Not to what other rows are about to run: a link changes the file's change time. */
        step(link(DIR "/evil", "hard"), "link");
        name = "./hard";
    } else if (is(argv, "chain_39")) {
        chain(39);
    } else if (is(argv, "chain_41")) {
        chain(41);
    } else if (is(argv, "long")) {
        memset(text, '/', 5000);
        strcpy(text + 5000 - strlen(RAN), RAN);
        name = text;
    } else if (is(argv, "nearly_long")) {
        memset(text, '/', 4095);
        strcpy(text + 4095 - strlen(RAN), RAN);
        name = text;
    } else if (is(argv, "deep")) {
        deep();
    } else if (is(argv, "copy")) {
        copy(RAN, "ran");
        name = "./ran";
    } else if (is(argv, "no_file")) {
        name = "./nothing";
    } else if (is(argv, "folder")) {
        name = ".";
    } else if (is(argv, "no_pointer")) {
        name = NULL;
    } else {
        name = argv[1];
    }
    attempt(run);
}
