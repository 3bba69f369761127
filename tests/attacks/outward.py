"""outward.py WHO NEIGHBOUR DAEMON: tries the privileged ways out of a session, and what must go on working.

NEIGHBOUR is a process of the same user outside the session, DAEMON is Guard's. WHO is `user` or `root`. Prints for each
`NAME errno N` or `NAME done`, and `works NAME RESULT` for the rest.
"""
import ctypes
import fcntl
import os
import pty
import resource
import signal
import socket
import struct
import termios

from common import attempt, main, say

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
TIOCLINUX, FIOSETOWN = 0x541C, 0x8901


def syscall(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), "syscall %d" % number)
    return result


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "libc")


def trial(name, act):
    ctypes.set_errno(0)
    try:
        act()
        say(name, "done")
    except OSError as error:
        say(name, "errno", error.errno)


def write(path, text, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def in_child(act):
    """In a process of its own, for acts that change the process; errors come back."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise OSError(code, "in a child")


def on_terminal(command, argument):
    def act():
        _, slave = pty.openpty()
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        fcntl.ioctl(slave, command, argument)

    in_child(act)


def own_socket_signals(pid):
    pair = socket.socketpair()
    fcntl.ioctl(pair[0], FIOSETOWN, struct.pack("i", pid))


def by_handle():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + b"\0" * 128)
    mount = ctypes.c_int()
    syscall(303, -100, b"/etc/hostname", handle, ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY)
    os.close(syscall(304, root, handle, os.O_RDONLY))


def signals(neighbour):
    trial("kill", lambda: os.kill(neighbour, signal.SIGKILL))
    trial("kill_group", lambda: os.kill(-neighbour, signal.SIGTERM))
    trial("pidfd_send_signal", lambda: signal.pidfd_send_signal(os.pidfd_open(neighbour), signal.SIGKILL))
    trial("tgkill", lambda: syscall(234, neighbour, neighbour, signal.SIGKILL))
    trial("sigqueue", lambda: syscall(129, neighbour, signal.SIGKILL, struct.pack("iii", signal.SIGKILL, 0, -1) + b"\0" * 116))
    read, _ = os.pipe()
    trial("setown", lambda: fcntl.fcntl(read, 8, neighbour))
    trial("setown_group", lambda: fcntl.fcntl(read, 8, -neighbour))
    trial("setown_ex", lambda: fcntl.fcntl(read, 15, struct.pack("ii", 1, neighbour)))
    trial("fiosetown", lambda: own_socket_signals(neighbour))
    trial("rlimit", lambda: resource.prlimit(neighbour, resource.RLIMIT_CPU, (1, 1)))
    trial("nice", lambda: os.setpriority(os.PRIO_PROCESS, neighbour, 10))
    trial("affinity", lambda: os.sched_setaffinity(neighbour, {0}))
    trial("ioprio", lambda: syscall(251, 1, neighbour, 3 << 13))
    trial("migrate_pages", lambda: syscall(256, neighbour, 64, ctypes.byref(ctypes.c_ulong(1)), ctypes.byref(ctypes.c_ulong(1))))
    trial("oom_score", lambda: write("/proc/%d/oom_score_adj" % neighbour, b"900"))
    # Success even if every one was refused: the test looks who is still alive. It may reach this process itself.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    in_child(lambda: os.kill(-1, signal.SIGTERM))
    signal.signal(signal.SIGTERM, before)


def anybody():
    trial("bpf", lambda: syscall(321, 7, b"\0" * 128, 128))
    trial("userfaultfd", lambda: os.close(syscall(323, 1)))
    trial("io_uring", lambda: os.close(syscall(425, 4, ctypes.create_string_buffer(120))))
    trial("tiocsti", lambda: on_terminal(termios.TIOCSTI, b"x"))
    trial("tioclinux", lambda: on_terminal(TIOCLINUX, b"\3\0\0\0\0\0\0\0"))
    trial("user_namespace", lambda: in_child(lambda: call(libc.unshare(CLONE_NEWUSER))))
    trial("mount", lambda: call(libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None)))


def root_only():
    trial("mount_namespace", lambda: in_child(lambda: call(libc.unshare(CLONE_NEWNS))))
    trial("setns", lambda: in_child(lambda: call(libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), CLONE_NEWNS))))
    trial("umount", lambda: call(libc.umount2(b"/tmp", 2)))
    trial("pivot_root", lambda: syscall(155, b"/", b"/mnt"))
    trial("fsopen", lambda: os.close(syscall(430, b"tmpfs", 0)))
    trial("chroot", lambda: in_child(lambda: os.chroot("/tmp")))
    trial("core_pattern", lambda: write("/proc/sys/kernel/core_pattern", b"|/tmp/x"))
    trial("modprobe", lambda: write("/proc/sys/kernel/modprobe", b"/tmp/x"))
    trial("sysrq", lambda: write("/proc/sysrq-trigger", b"h"))
    trial("uevent_helper", lambda: write("/sys/kernel/mm/transparent_hugepage/enabled", b"never"))
    trial("tracing", lambda: write("/sys/kernel/tracing/tracing_on", b"0"))
    trial("bpf_pins", lambda: os.rmdir("/sys/fs/bpf/guard"))
    trial("bpf_folder", lambda: os.mkdir("/sys/fs/bpf/mine"))
    trial("disk", lambda: os.close(os.open("/dev/vda", os.O_RDONLY)))
    trial("memory", lambda: os.close(os.open("/dev/mem", os.O_RDONLY)))
    trial("module", lambda: syscall(175, b"x" * 64, 64, b""))
    trial("kexec", lambda: syscall(246, 0, 0, None, 0))
    trial("by_handle", by_handle)
    trial("mknod", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)))
    trial("hostname", lambda: socket.sethostname("mine"))
    trial("clock", lambda: syscall(227, 0, struct.pack("qq", 1, 0)))
    trial("kernel_log", lambda: syscall(103, 5, None, 0))


def works(name, act):
    try:
        say("works", name, act())
    except OSError as error:
        say("works", name, "errno", error.errno)


def own_child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def own_zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.kill(pid, signal.SIGTERM)
    return os.waitpid(pid, 0)[1]


def own_settings():
    write("/proc/self/comm", b"renamed")
    write("/proc/self/oom_score_adj", b"500")
    fcntl.fcntl(os.pipe()[0], 8, os.getpid())
    resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
    os.nice(1)
    return "ok"


def as_root():
    with open("/root/owned", "w") as file:
        os.fchown(file.fileno(), 1000, 1000)
    os.chmod("/root/owned", 0o4755)
    os.listdir("/home/alice")
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 81))
    in_child(lambda: (os.setgroups([]), os.setresgid(1000, 1000, 1000), os.setresuid(1000, 1000, 1000)))
    return "ok"


def run(args):
    who, neighbour, daemon = args[0], int(args[1]), int(args[2])
    signals(neighbour)
    trial("kill_daemon", lambda: os.kill(daemon, signal.SIGKILL))
    anybody()
    if who == "root":
        root_only()
        works("as_root", as_root)
    works("signal_0", lambda: os.kill(neighbour, 0))
    works("own_child", own_child)
    works("own_zombie", own_zombie)
    works("own_settings", own_settings)
    for program in ("git", "make", "node", "python3"):
        works(program, lambda: attempt(["/usr/bin/" + program, "--version"]))


main(run)
