"""try.py [--times N] [--pause S] CMD…: one or several execs of CMD; prints each result."""
import time

from common import attempt, main, say


def run(args):
    times, pause = 1, 0.0
    while args and args[0].startswith("--"):
        if args[0] == "--times":
            times = int(args[1])
        elif args[0] == "--pause":
            pause = float(args[1])
        args = args[2:]
    for _ in range(times):
        say(attempt(args))
        time.sleep(pause)


main(run)
