"""argv_swap.py N: N execs of /usr/bin/echo while a thread of the same process keeps rewriting the argument's bytes.

Prints for each `PID STATUS OUTPUT`. What echo printed is what ran; the test compares it with the record of that process.
"""
import ctypes
import os
import threading

from common import main, say

libc = ctypes.CDLL(None, use_errno=True)
A, B = b"AAAAAAAA", b"BBBBBBBB"


def child(stdout):
    os.dup2(stdout, 1)
    word = ctypes.create_string_buffer(A)
    argv = (ctypes.c_char_p * 3)(b"echo", ctypes.cast(word, ctypes.c_char_p), None)
    env = (ctypes.c_char_p * 1)(None)

    def rewrite():
        place = ctypes.addressof(word)
        while True:
            ctypes.memmove(place, B, 8)
            ctypes.memmove(place, A, 8)

    threading.Thread(target=rewrite, daemon=True).start()
    libc.execve(b"/usr/bin/echo", argv, env)
    os._exit(100)


def run(args):
    for _ in range(int(args[0])):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(write)
        os.close(write)
        output = b""
        while part := os.read(read, 64):
            output += part
        os.close(read)
        _, status = os.waitpid(pid, 0)
        say(pid, status, output.decode().strip() or "-")


main(run)
