"""flood.py MODE SECONDS WORKERS: workers that do nothing but MODE; prints how often they did, all together.

MODE: names (execs of ever new names that do not exist), allowed, denied, acts (refused tracing). Or: `forks`, as many
processes as the session may have; `calm N`, some ordinary execs with the time that each took; `slow N`, some execs of
names that do not exist, one after the other.
"""
import ctypes
import errno
import os
import signal
import time

from common import main, say

LOADER = "/lib64/ld-linux-x86-64.so.2"


def spawn(argv):
    """Wait status of an exec, or minus its errno."""
    try:
        return os.waitpid(os.posix_spawn(argv[0], argv, dict(os.environ)), 0)[1]
    except OSError as error:
        return -error.errno


def names(worker, number):
    name = "/nowhere/%d-%d" % (worker, number)
    try:
        os.execve(name, [name], {})
    except FileNotFoundError:
        pass


def allowed(_worker, _number):
    status = spawn(["/usr/bin/true"])
    if status not in (0, -errno.EPERM):
        say("strange", status)


def denied(_worker, _number):
    status = spawn([LOADER, "/usr/bin/true"])
    if status != -errno.EPERM:
        say("strange", status)


LIBC = ctypes.CDLL(None, use_errno=True)


def acts(_worker, _number):
    if LIBC.ptrace(0, 0, 0, 0) == 0:
        say("strange: traced")


MODES = {"names": names, "allowed": allowed, "denied": denied, "acts": acts}


def work(act, worker, seconds, write):
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        act(worker, number)
        number += 1
    os.write(write, b"%d\n" % number)
    os._exit(0)


def flood(act, seconds, workers):
    read, write = os.pipe()
    for worker in range(workers):
        if os.fork() == 0:
            work(act, worker, seconds, write)
    os.close(write)
    say("flooding")
    with os.fdopen(read) as counts:
        say("made", sum(int(line) for line in counts))
    for _ in range(workers):
        os.wait()


def forks():
    children = []
    read, _write = os.pipe()
    try:
        while len(children) < 10000:
            child = os.fork()
            if child == 0:
                os.read(read, 1)
                os._exit(0)
            children.append(child)
    except OSError as error:
        say("forks", len(children), "errno", error.errno)
    say("flooding")
    time.sleep(4)
    for child in children:
        os.kill(child, signal.SIGKILL)
    say("made", len(children))


def calm(count):
    for _ in range(count):
        begun = time.monotonic()
        status = spawn(["/usr/bin/cat", "/dev/null"])
        say("calm", status, int((time.monotonic() - begun) * 1000))


def slow(count):
    say("flooding")
    for number in range(count):
        names(0, number)
        time.sleep(0.03)
    say("made", count)


def run(args):
    if args[0] == "forks":
        forks()
    elif args[0] == "calm":
        calm(int(args[1]))
    elif args[0] == "slow":
        slow(int(args[1]))
    else:
        flood(MODES[args[0]], float(args[1]), int(args[2]))


main(run)
