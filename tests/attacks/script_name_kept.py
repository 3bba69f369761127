"""script_name_kept.py LINK: while the script behind LINK runs, and after it, tries to turn the name that it was started by."""
import errno
import os
import subprocess
import time

from common import main, say


def turn(link):
    """Each way to turn a name; what the kernel says to each."""
    folder = os.path.dirname(link)
    ways = {
        "unlink": lambda: os.unlink(link),
        "rename": lambda: os.rename(link, link + ".away"),
        "replace": lambda: os.replace(folder + "/other", link),
        "folder": lambda: os.rename(folder, folder + ".away"),
    }
    for name, way in ways.items():
        try:
            way()
            return f"{name} done"
        except OSError as error:
            if error.errno != errno.EPERM:
                return f"{name} {errno.errorcode[error.errno]}"
    return "refused"


def run(args):
    (link,) = args
    os.symlink("/bin/true", os.path.dirname(link) + "/other")
    with subprocess.Popen([link], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as script:
        say("script " + script.stdout.readline().strip())
        say("meanwhile " + turn(link))
        print("go on", file=script.stdin, flush=True)
        say("script " + script.stdout.readline().strip())
    # The name is free when the daemon has seen the end.
    end = time.monotonic() + 10
    while (said := turn(link)) == "refused" and time.monotonic() < end:
        time.sleep(0.1)
    say("afterwards " + said)


main(run)
