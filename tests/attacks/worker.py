"""worker.py LOG -- CMD…: a process of the session, not its entry, tries CMD and then /usr/bin/true again and again.

It notes every result, so that the test sees what happened to it after the daemon, and with it the entry process, died.
"""
import os
import time

from common import attempt, main, note


def run(args):
    log, command = args[0], args[2:]
    if os.fork() == 0:
        os.setsid()
        note(log, "pid", os.getpid())
        note(log, "first", attempt(["/usr/bin/true"]))
        if command:
            note(log, "trying")
            note(log, "command", attempt(command))
        while True:
            note(log, "true", attempt(["/usr/bin/true"]))
            time.sleep(0.05)
    while True:
        time.sleep(1)


main(run)
