"""deletes.py MODE DIR: removes what is in DIR, in-process. Modes: own (makes files first and removes those), all (tries each file
once), patient (tries again and again what is refused), stubborn (goes on for ever, with a second process beside it)."""
import os
import sys
import time

from common import main, say


def names(folder):
    return [os.path.join(folder, name) for name in os.listdir(folder)]


def remove(path):
    try:
        os.unlink(path)
        return True
    except PermissionError:
        return False


def own(folder):
    for index in range(60):
        with open("%s/own-%d" % (folder, index), "w") as file:
            file.write("x")
    say("removed", sum(remove("%s/own-%d" % (folder, index)) for index in range(60)))


def everything(folder):
    done = [remove(path) for path in names(folder)]
    say("removed", done.count(True), "refused", done.count(False))


def patient(folder):
    asked = False
    while names(folder):
        if not remove(names(folder)[0]):
            if not asked:
                say("refused", len(names(folder)))
                asked = True
            time.sleep(0.5)
    say("removed all")


def stubborn(folder):
    if os.fork() == 0:
        say("beside", os.getpid())
        time.sleep(600)
    time.sleep(0.5)
    while True:
        for path in names(folder):
            remove(path)


def run(args):
    {"own": own, "all": everything, "patient": patient, "stubborn": stubborn}[args[0]](args[1])


main(run)
