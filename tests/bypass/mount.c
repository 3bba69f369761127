/* mount HOW: programs reached through mounts that Guard has not marked. HOW: `bind`, `tmpfs`, `namespace` (a new mount
 * namespace), `user_namespace`, `pivot`, `detached` (open_tree, never mounted anywhere). */
#include "bypass.h"
#include <sys/mount.h>

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif

static char name[256];
static int tree = -1;

static void run(void)
{
    if (tree >= 0)
        exec_at(tree, "ran", argv_ran, env_none, 0);
    else
        execve(name, argv_ran, env_none);
}

int main(int argc, char **argv)
{
    (void)argc;
    snprintf(name, sizeof name, "%s/m/ran", getcwd(NULL, 0));
    step(mkdir("m", 0755), "mkdir");
    if (is(argv, "namespace") || is(argv, "pivot")) {
        step(unshare(CLONE_NEWNS), "unshare");
        step(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    }
    if (is(argv, "user_namespace")) {
        step(unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare");
        step(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    }
    if (is(argv, "detached")) {
        tree = step(syscall(SYS_open_tree, AT_FDCWD, DIR, OPEN_TREE_CLONE | O_CLOEXEC), "open_tree");
        attempt(run);
    }
    if (is(argv, "tmpfs")) {
        step(mount("tmpfs", "m", "tmpfs", 0, NULL), "mount");
        copy(RAN, "m/ran");
        attempt(run);
    }
    if (is(argv, "namespace"))
        strcpy(name, RAN);
    else
        step(mount(DIR, "m", NULL, MS_BIND, NULL), "mount");
    if (is(argv, "pivot")) {
        step(mkdir("m2", 0755), "mkdir");
        step(mount("tmpfs", "m2", "tmpfs", 0, NULL), "mount");
        copy(RAN, "m2/ran");
        step(mkdir("m2/old", 0755), "mkdir");
        step(syscall(SYS_pivot_root, "m2", "m2/old"), "pivot_root");
        step(chdir("/"), "chdir");
        strcpy(name, "/ran");
    }
    attempt(run);
}
