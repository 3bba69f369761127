"""escape.py: leaves the session's cgroup, in-process, and then tries an exec that policy never allows. Prints the results."""
import os

from common import attempt, main, say


def run(_):
    for root in ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"):
        if os.path.exists(root):
            try:
                with open(root, "w") as procs:
                    procs.write(str(os.getpid()))
                say("moved")
            except OSError as error:
                say("errno", error.errno)
    with open("/proc/self/cgroup") as file:
        say("cgroup", file.read().strip().splitlines()[-1])
    say("rm", attempt(["/usr/bin/rm", "-rf", "/home/alice/precious"]))


main(run)
