"""probes.py: a PATH with five folders that lack the program, then the one that has it."""
import os

from common import main


def run(_):
    pid = os.fork()
    if pid == 0:
        path = ":".join("/nowhere/%d" % n for n in range(5)) + ":/usr/bin"
        os.execvpe("true", ["true", "probed"], {"PATH": path})
    os.waitpid(pid, 0)


main(run)
