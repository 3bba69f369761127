"""ptrace.py: tries to trace, be traced, and write another process's memory. Prints `NAME errno N` or `NAME done`."""
import ctypes
import os
import signal
import time

from common import main, say

libc = ctypes.CDLL(None, use_errno=True)
TRACEME, ATTACH, SEIZE = 0, 16, 0x4206


def ptrace(request, pid):
    ctypes.set_errno(0)
    return "done" if libc.ptrace(request, pid, None, None) == 0 else "errno %d" % ctypes.get_errno()


def run(_):
    victim = os.fork()
    if victim == 0:
        while True:
            time.sleep(1)
    child = os.fork()
    if child == 0:
        say("traceme", ptrace(TRACEME, 0))
        os._exit(0)
    os.waitpid(child, 0)
    say("attach", ptrace(ATTACH, victim))
    say("seize", ptrace(SEIZE, victim))
    try:
        os.close(os.open("/proc/%d/mem" % victim, os.O_RDWR))
        say("mem", "done")
    except OSError as error:
        say("mem", "errno", error.errno)
    os.kill(victim, signal.SIGKILL)


main(run)
