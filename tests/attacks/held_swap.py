"""held_swap.py HOW FILE OTHER WORD: starts FILE WORD, and while that exec is held tries to put OTHER's bytes in its place.

HOW: `rename` OTHER over FILE, `write` into FILE in place, `wait` (the test writes from outside). Prints what came of it.
"""
import os
import time

from common import attempt, main, say


def swap(how, file, other):
    time.sleep(1.5)
    try:
        if how == "rename":
            os.rename(other, file)
        elif how == "write":
            with open(other, "rb") as new:
                content = new.read()
            with open(file, "r+b") as old:
                old.truncate(0)
                old.write(content)
        say("swap done")
    except OSError as error:
        say("swap errno", error.errno)


def run(args):
    how, file, other, word = args
    if how != "wait":
        # A process, not a thread: the exec is held in a child, and this program must stay able to act.
        if os.fork() == 0:
            swap(how, file, other)
            os._exit(0)
    say("exec", attempt([file, word]))


main(run)
