"""live.py LOG: the entry process of a session, tries /usr/bin/true again and again and notes every result.

Meanwhile it takes commands from standard input, one a line, and answers each with a line:
`exit N`, `write PATH` (opens for writing), `turn PATH` (renames it), `start CMD…` (starts and does not wait), `run CMD…` (waits),
`show PATH` (its content), `say WORD`.
"""
import os
import select
import subprocess
import sys

from common import attempt, main, note, say


def write(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
        say("write ok")
    except OSError as error:
        say("write errno %d" % error.errno)


def turn(path):
    try:
        os.rename(path, path + ".turned")
        say("turn ok")
    except OSError as error:
        say("turn errno %d" % error.errno)


def start(argv):
    try:
        subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        say("start ok")
    except OSError as error:
        say("start errno %d" % error.errno)


def show(path):
    try:
        say("shown", path, open(path).read().strip())
    except OSError as error:
        say("shown", path, "errno %d" % error.errno)


def take(words):
    if words[0] == "exit":
        say("bye")
        sys.exit(int(words[1]))
    if words[0] == "write":
        write(words[1])
    if words[0] == "turn":
        turn(words[1])
    if words[0] == "start":
        start(words[1:])
    if words[0] == "run":
        say("run", attempt(words[1:]))
    if words[0] == "show":
        show(words[1])
    if words[0] == "say":
        say(words[1])


def run(args):
    note(args[0], "pid", os.getpid())
    text = b""
    listening = True
    while True:
        if listening and select.select([0], [], [], 0.05)[0]:
            more = os.read(0, 4096)
            listening = bool(more)
            text += more
            while b"\n" in text:
                line, text = text.split(b"\n", 1)
                take(line.decode().split())
        note(args[0], "true", attempt(["/usr/bin/true"]))


main(run)
