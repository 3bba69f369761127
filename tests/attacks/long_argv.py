"""long_argv.py: an exec with 15 arguments of 127 KiB each, near the kernel's limit. Prints the result."""
from common import attempt, main, say


def run(_):
    words = ["true"] + [chr(ord("a") + n) * 130000 for n in range(15)]
    say(attempt(words, path="/usr/bin/true", env={}))


main(run)
