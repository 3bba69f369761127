"""What the attack programs share: one exec attempt with its errno, and a log that outlives the program."""
import os
import sys
import time


def attempt(argv, path=None, env=None, stdout=None, before=None):
    """Forks, execs, waits. Returns `errno N` if the exec failed, else `ran STATUS` (wait status)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            if stdout is not None:
                os.dup2(stdout, 1)
            if before is not None:
                before()
            os.execve(path or argv[0], argv, dict(os.environ) if env is None else env)
        except OSError as error:
            os.write(write, b"%d" % error.errno)
        os._exit(127)
    os.close(write)
    failed = os.read(read, 16)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    return "errno " + failed.decode() if failed else "ran %d" % status


def say(*words):
    """One line of the attack's own output."""
    print(*words, flush=True)


def note(path, *words):
    """One line with the monotonic time, appended to a file that the test reads."""
    line = "%.3f %s\n" % (time.monotonic(), " ".join(str(w) for w in words))
    with open(path, "a") as log:
        log.write(line)


def main(run):
    run(sys.argv[1:])
