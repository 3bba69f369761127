"""mappings.py DIR: maps executable what no exec ever saw. Prints `NAME done` or `NAME errno N` for each."""
import ctypes
import errno
import mmap
import os
import shutil
import sys

from common import main, say

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
READ, WRITE, EXEC = 1, 2, 4
SHARED, PRIVATE, ANONYMOUS = 1, 2, 32
PAGE = 4096
FAILED = ctypes.c_void_p(-1).value


def system_library():
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if "libc.so" in line)


def told(name, failed):
    say(name, "errno %d" % ctypes.get_errno() if failed else "done")


def map_it(protection, flags, fd=-1):
    ctypes.set_errno(0)
    return libc.mmap(None, PAGE, protection, flags, fd, 0)


def protect(address, protection):
    ctypes.set_errno(0)
    return libc.mprotect(address, PAGE, protection) != 0


def file_of(path):
    return os.open(path, os.O_RDONLY)


def run(args):
    library, own = system_library(), os.path.join(args[0], "own.so")
    shutil.copy(library, own)
    os.chmod(own, 0o644)
    told("anonymous", map_it(READ | EXEC, PRIVATE | ANONYMOUS) == FAILED)
    told("anonymous_shared", map_it(READ | EXEC, SHARED | ANONYMOUS) == FAILED)
    told("anonymous_later", protect(map_it(READ | WRITE, PRIVATE | ANONYMOUS), READ | EXEC))
    told("system", map_it(READ | EXEC, PRIVATE, file_of(library)) == FAILED)
    told("system_writable", map_it(READ | WRITE | EXEC, PRIVATE, file_of(library)) == FAILED)
    page = map_it(READ | WRITE, PRIVATE, file_of(library))
    ctypes.memset(page, 0xC3, 16)
    told("system_changed", protect(page, READ | EXEC))
    told("system_later", protect(map_it(READ, PRIVATE, file_of(library)), READ | EXEC))
    told("own", map_it(READ | EXEC, PRIVATE, file_of(own)) == FAILED)
    told("own_later", protect(map_it(READ, PRIVATE, file_of(own)), READ | EXEC))
    memory = os.memfd_create("memory")
    with open(library, "rb") as source:
        os.write(memory, source.read(1 << 16))
    told("memfd", map_it(READ | EXEC, SHARED, memory) == FAILED)
    gone = file_of(own)
    os.unlink(own)
    told("deleted", map_it(READ | EXEC, PRIVATE, gone) == FAILED)
    shutil.copy(library, own)
    link = os.path.join(args[0], "link.so")
    if not os.path.lexists(link):
        os.symlink(own, link)
    try:
        ctypes.CDLL(link)
        say("dlopen", "done")
    except OSError:
        say("dlopen", "errno %d" % errno.EPERM)


main(run)
