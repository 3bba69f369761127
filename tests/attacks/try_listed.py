"""try_listed.py FILE: one exec of the command whose words are the lines of FILE; prints the result."""
from common import attempt, main, say


def run(args):
    with open(args[0]) as lines:
        say(attempt(lines.read().split("\n")))


main(run)
