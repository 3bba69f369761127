/* args HOW: argument and environment vectors at and beyond every limit. */
#include "bypass.h"

static char **vector, **env;

static void run(void)
{
    execve(RAN, vector, env);
}

static char **filled(const char *first, size_t count, size_t length)
{
    char **list = calloc(count + 2, sizeof *list);
    char *text = malloc(length + 1);
    if (list == NULL || text == NULL)
        result("no memory");
    memset(text, 'x', length);
    text[length] = 0;
    list[0] = (char *)first;
    for (size_t i = 1; i <= count; i++)
        list[i] = text;
    return list;
}

int main(int argc, char **argv)
{
    (void)argc;
    vector = (char **)argv_ran;
    env = (char **)env_none;
    if (is(argv, "two_mb")) {
        vector = filled("ran", 15, 131000);
    } else if (is(argv, "too_long")) {
        vector = filled("ran", 1, 140000);
    } else if (is(argv, "too_much")) {
        vector = filled("ran", 30, 131000);
    } else if (is(argv, "six_mb")) {
        struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
        struct rlimit much = {64 << 20, 64 << 20};
        if (setrlimit(RLIMIT_STACK, &all) != 0)
            step(setrlimit(RLIMIT_STACK, &much), "setrlimit");
        vector = filled("ran", 46, 131000);
    } else if (is(argv, "many")) {
        vector = filled("ran", 100000, 1);
    } else if (is(argv, "huge_env")) {
        env = filled("A=1", 15, 131000);
        for (int i = 1; i <= 15; i++) {
            env[i] = strdup(env[i]);
            env[i][1] = '=';
        }
    } else if (is(argv, "argc_0")) {
        vector = calloc(1, sizeof *vector);
    } else if (is(argv, "no_argv")) {
        vector = NULL;
        env = NULL;
    } else if (is(argv, "empty_argv0")) {
        vector = filled("", 0, 1);
    } else if (is(argv, "bytes")) {
        vector = filled("ran", 1, 3);
        vector[1] = "\xff\xfe\x80";
        env = filled("N\xff=\x80", 0, 1);
    } else if (is(argv, "bad_pointer")) {
        vector = filled("ran", 1, 3);
        vector[1] = (char *)8;
    } else if (is(argv, "bad_vector")) {
        vector = (char **)8;
    }
    attempt(run);
}
