"""script_turn.py TIMES LINK GOOD OTHER: one process turns LINK between two scripts again and again, another executes it.

Prints `PID WORD` for each script that ran, with the word that the script printed; `- errno N` for each that did not. At
last `turned N refused M`.
"""
import contextlib
import os
import signal
import sys
import time

from common import attempt, main, say


def turn(link, targets, report):
    done = refused = 0
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    while not stop:
        for target in targets:
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(link + ".new") != target:
                    continue
            try:
                os.symlink(target, link + ".new")
            except FileExistsError:
                pass
            try:
                os.rename(link + ".new", link)
                done += 1
            except PermissionError:
                refused += 1
            # Below what one command may delete in a minute.
            time.sleep(0.15)
    os.write(report, b"turned %d refused %d" % (done, refused))
    os._exit(0)


def run(args):
    times, link, good, other = int(args[0]), *args[1:]
    read, write = os.pipe()
    turner = os.fork()
    if turner == 0:
        turn(link, (other, good), write)
    os.close(write)
    for _ in range(times):
        output, inlet = os.pipe()
        result = attempt([link], stdout=inlet)
        os.close(inlet)
        with os.fdopen(output) as printed:
            said = printed.read().split()
        say(*(said if len(said) == 2 else ["-", result]))
    os.kill(turner, signal.SIGTERM)
    os.waitpid(turner, 0)
    say(os.read(read, 100).decode())
    sys.exit(0)


main(run)
