"""namespaces.py HOW…: programs in namespaces that the session makes. Prints results; reads a line before each go.

`sandbox OPTION… -- COMMAND`: bubblewrap with its mounts made, held by --block-fd until a line comes on standard input.
`bare`: bubblewrap without waiting. `unshared`: a user, mount and process namespace by hand, double fork, setsid; tries again
until its exec is let through. `late PROGRAM`: after a line, tries PROGRAM until it is let through. `mem`: opens its own memory.
"""
import ctypes
import os
import subprocess
import sys
import time

from common import attempt, main, say

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID = 0x10000000, 0x20000, 0x20000000
TRIES = 100
# bubblewrap under a name that policy does not know: by its own name it is denied before it starts.
BWRAP = "/usr/local/bin/boxed"


def sandbox(args):
    split = args.index("--")
    read, write = os.pipe()
    os.set_inheritable(read, True)
    words = [BWRAP, "--ro-bind", "/", "/", "--dev", "/dev", "--unshare-pid", "--proc", "/proc"]
    words += args[:split] + ["--block-fd", str(read)] + args[split + 1:]
    child = subprocess.Popen(words, pass_fds=[read])
    os.close(read)
    sys.stdin.readline()
    os.write(write, b"go")
    os.close(write)
    say("sandbox", child.wait())


def bare():
    done = subprocess.run([BWRAP, "--ro-bind", "/", "/", "/usr/bin/true"], stderr=subprocess.PIPE)
    say("bare", done.returncode)


def patiently(argv):
    """The first result, and the last."""
    first = last = attempt(argv)
    for _ in range(TRIES):
        if last == "ran 0":
            break
        time.sleep(0.1)
        last = attempt(argv)
    return "%s then %s" % (first, last)


def unshared():
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) != 0:
        say("unshared errno", ctypes.get_errno())
        return
    for file, text in (("setgroups", "deny"), ("uid_map", "0 %d 1" % uid), ("gid_map", "0 %d 1" % gid)):
        with open("/proc/self/" + file, "w") as of:
            of.write(text)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            say("unshared", patiently(["/usr/bin/cat", "/etc/hostname"]))
        else:
            os.wait()
        os._exit(0)
    os.wait()


def late(args):
    say("ready")
    sys.stdin.readline()
    say("late", patiently(args))


def mem():
    try:
        os.close(os.open("/proc/self/mem", os.O_RDWR))
        say("mem done")
    except OSError as error:
        say("mem errno", error.errno)


def run(args):
    how, rest = args[0], args[1:]
    if how in ("sandbox", "late"):
        globals()[how](rest)
    else:
        globals()[how]()


main(run)
