"""uring_deletes.py DIR: removes what is in DIR through io_uring, with credentials of this process that it registered before it
got new ones: for the kernel other credentials than its own."""
import ctypes
import mmap
import os
import struct
import sys

from common import main, say

LIBC = ctypes.CDLL(None, use_errno=True)
SETUP, ENTER, REGISTER = 425, 426, 427
REGISTER_PERSONALITY = 9
UNLINKAT = 36
AT_FDCWD = -100
GETEVENTS = 1
SET_KEEPCAPS = 8
OFF_SQES = 0x10000000


def call(number, *args):
    got = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if got < 0:
        raise OSError(ctypes.get_errno(), "system call %d" % number)
    return got


class Ring:
    """One submission at a time, both queues in one mapping (since 5.4)."""

    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = call(SETUP, 4, params)
        entries, completions = struct.unpack_from("<II", params, 0)
        head, tail, mask, _, _, _, array = struct.unpack_from("<7I", params, 40)
        self.tail, self.mask, self.array = tail, mask, array
        self.head_done, self.tail_done, self.mask_done, _, _, self.cqes = struct.unpack_from("<6I", params, 80)
        size = max(array + 4 * entries, self.cqes + 16 * completions)
        self.rings = mmap.mmap(self.fd, size, offset=0)
        self.sqes = mmap.mmap(self.fd, 64 * entries, offset=OFF_SQES)

    def u32(self, at):
        return struct.unpack_from("<I", self.rings, at)[0]

    def unlink(self, path, personality):
        name = ctypes.create_string_buffer(path.encode())
        tail = self.u32(self.tail)
        slot = tail & self.u32(self.mask)
        entry = struct.pack("<BBHiQQIIQHH", UNLINKAT, 0, 0, AT_FDCWD, 0, ctypes.addressof(name), 0, 0, 0, 0, personality)
        self.sqes[64 * slot:64 * slot + 64] = entry.ljust(64, b"\0")
        struct.pack_into("<I", self.rings, self.array + 4 * slot, slot)
        struct.pack_into("<I", self.rings, self.tail, tail + 1)
        call(ENTER, self.fd, 1, 1, GETEVENTS, None, 0)
        done = self.u32(self.head_done)
        result = struct.unpack_from("<Qi", self.rings, self.cqes + 16 * (done & self.u32(self.mask_done)))[1]
        struct.pack_into("<I", self.rings, self.head_done, done + 1)
        return result


def run(args):
    ring = Ring()
    personality = call(REGISTER, ring.fd, REGISTER_PERSONALITY, None, 0)
    # For this the kernel makes new credentials, which may do neither more nor less.
    if LIBC.prctl(SET_KEEPCAPS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    results = [ring.unlink(os.path.join(args[0], name), personality) for name in sorted(os.listdir(args[0]))]
    say("removed", results.count(0), "refused", results.count(-1), "else", sorted(set(results) - {0, -1}))


main(run)
