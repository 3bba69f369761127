"""layers.py DIR: first changes below an overlay: what a session may do to its own files also where the kernel must copy them up; and,
as root, an attribute that only the capability behind such copies could set."""
import os

from common import main, say


def tried(name, act):
    try:
        act()
        say(name, "done")
    except OSError as error:
        say(name, "errno", error.errno)


def append(path):
    with open(path, "a") as file:
        file.write("more")


def layers(folder):
    tried("mkdir", lambda: os.mkdir(folder + "/deep/new"))
    tried("append", lambda: append(folder + "/deep/one"))
    tried("chmod", lambda: os.chmod(folder + "/deep/two", 0o640))
    tried("rename", lambda: os.rename(folder + "/deep/three", folder + "/deep/four"))
    tried("trusted", lambda: os.setxattr(folder + "/deep/two", "trusted.guard", b"1"))


main(lambda words: layers(words[0]))
