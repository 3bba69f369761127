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
        uid, gid = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) != 0:
            os._exit(101)
        for file, text in (("setgroups", "deny"), ("uid_map", "0 %d 1" % uid), ("gid_map", "0 %d 1" % gid)):
            with open("/proc/self/" + file, "w") as of:
                of.write(text)
        if libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None) != 0:
            os._exit(102)
        shutil.copy("/usr/bin/true", "/mnt/program")

    return attempt(["/mnt/program"], before=enter)


def run(_):
    for name in (memfd, memfd_by_path, deleted, new_mount):
        say(name.__name__, name())


main(run)
