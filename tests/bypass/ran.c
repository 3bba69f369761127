/* The payload. `ran show` prints its arguments and environment, for tests that compare them with the record. */
#include "bypass.h"

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "show") == 0) {
        char line[512];
        int at = 0;
        for (int i = 0; i < argc; i++)
            at += snprintf(line + at, sizeof line - at, "%s%s", i ? "," : "", argv[i]);
        at += snprintf(line + at, sizeof line - at, ";");
        for (int i = 0; environ[i] != NULL; i++)
            at += snprintf(line + at, sizeof line - at, "%s%s", i ? "," : "", environ[i]);
        say("%s", line);
    }
    return 42;
}
