"""mount_inside.py: a root session mounts a tmpfs in its own namespace and starts a program from it. Prints the result."""
import ctypes
import os
import shutil

from common import attempt, main, say

libc = ctypes.CDLL(None, use_errno=True)


def run(_):
    os.makedirs("/tmp/inside", exist_ok=True)
    if libc.mount(b"tmpfs", b"/tmp/inside", b"tmpfs", 0, None) != 0:
        say("mount refused", ctypes.get_errno())
        return
    shutil.copy("/usr/bin/true", "/tmp/inside/program")
    say("program", attempt(["/tmp/inside/program"]))


main(run)
