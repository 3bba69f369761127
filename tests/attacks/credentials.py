"""credentials.py [PATH…]: the entry process of a session that shows what it was given, in its own process, and waits.

Prints folder, mount and files with modes and owners, tries to change them, prints each file's content and whether the environment
holds it; then, for each PATH, what it finds there. Ends when its standard input does.
"""
import os
import sys

from common import main, say

FOLDER = os.environ.get("GUARD_CREDENTIALS", "/run/guard/credentials")


def tried(what, act):
    try:
        act()
        say(what, "done")
    except OSError as error:
        say(what, "errno", error.errno)


def show(path):
    meta = os.stat(path)
    say("file", "%o" % (meta.st_mode & 0o7777), meta.st_uid, os.path.basename(path))


def run(args):
    meta = os.stat(FOLDER)
    say("folder", "%o" % (meta.st_mode & 0o7777), meta.st_uid, FOLDER)
    for line in open("/proc/self/mounts"):
        if line.split()[1] == FOLDER:
            say("mount", line.split()[2], line.split()[3])
    tried("create", lambda: os.open(FOLDER + "/x", os.O_CREAT | os.O_WRONLY))
    held = {}
    for name in sorted(os.listdir(FOLDER)):
        path = FOLDER + "/" + name
        show(path)
        tried("write", lambda: os.open(path, os.O_WRONLY))
        held[name] = open(path).read()
        say("value", name, held[name].strip().replace("\n", " "))
    everything = "\n".join("%s=%s" % pair for pair in os.environ.items())
    say("environment", "holds" if any(value in everything for value in held.values()) else "clean")
    for path in args:
        try:
            say("seen", path, os.listdir(path))
        except OSError as error:
            say("seen", path, "errno", error.errno)
    say("ready")
    sys.stdin.read()


main(run)
