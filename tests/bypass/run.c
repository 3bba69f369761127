/* run PROGRAM ARG…: starts a program. A first word NAME=VALUE is its environment, `<FILE` its standard input; `\s` in an
 * argument is a blank, `\d` a dash: policy need not know flags of this program. */
#include "bypass.h"

static char **words;
static char *env[2];

static void run(void)
{
    execve(words[0], words, env);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        char *to = argv[i];
        for (char *from = argv[i]; *from; from++) {
            if (from[0] == '\\' && from[1] == 's') {
                *to++ = ' ';
                from++;
            } else if (from[0] == '\\' && from[1] == 'd') {
                *to++ = '-';
                from++;
            } else {
                *to++ = *from;
            }
        }
        *to = 0;
    }
    words = argv + 1;
    if (strchr(words[0], '=') != NULL)
        env[0] = *words++;
    if (words[0][0] == '<') {
        int input = step(open(*words + 1, O_RDONLY), "open");
        dup2(input, 0);
        words++;
    }
    attempt(run);
}
