"""unmarked.py: programs that no mark can hold: memfd, deleted file, new mount in a new namespace. Prints each result."""
import ctypes
import os
import shutil

from common import attempt, main, say

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def memfd():
    fd = os.memfd_create("program", 0)
    with open("/usr/bin/true", "rb") as program:
        os.write(fd, program.read())
    return attempt(["true"], path=fd)


def memfd_by_path():
    fd = os.memfd_create("program", 0)
    with open("/usr/bin/true", "rb") as program:
        os.write(fd, program.read())
    return attempt(["true"], path="/proc/self/fd/%d" % fd)


def deleted():
    shutil.copy("/usr/bin/true", "gone")
    fd = os.open("gone", os.O_RDONLY)
    os.unlink("gone")
    return attempt(["true"], path=fd)


def new_mount():
    def enter():
        uid = os.getuid()
        flags = CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER
        if libc.unshare(flags) != 0:
            os._exit(101)
        if libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None) != 0:
            os._exit(102)
        shutil.copy("/usr/bin/true", "/mnt/program")

    return attempt(["/mnt/program"], before=enter)


def run(_):
    for name in (memfd, memfd_by_path, deleted, new_mount):
        say(name.__name__, name())


main(run)
