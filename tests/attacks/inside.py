"""inside.py: the entry process of a session that does what it is told: one JSON object a line, answered by `N {…}` in order.

`{"run": ARGV}` waits for a program, `{"start": ARGV, "as": NAME}` does not and `{"end": NAME}` gives what came of it;
`{"ask": PATH}` asks a daemon's socket for the own status in the form of docs/inside.md; `{"write": PATH, "text": TEXT}`
opens for writing and writes; `{"kill": PID}` sends SIGTERM; `{"ended": true}` gives the codes of what was started and has
ended; `{"exit": CODE}` ends.
"""
import json
import os
import signal
import socket
import struct
import subprocess
import sys

from common import main, say

started = {}


def result(process):
    out, err = process.communicate(timeout=60)
    return {"code": process.returncode, "out": out.decode(), "err": err.decode()}


def start(argv):
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ask(path):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(20)
    line.connect(path)
    message = b"\xc2\x02\x00"  # LocalRequest { own_status = 40: {} }
    line.sendall(struct.pack("<I", len(message)) + message)
    answer = line.makefile("rb")
    length = struct.unpack("<I", answer.read(4))[0]
    return answer.read(length).decode(errors="replace")


def take(wish):
    if "run" in wish:
        return result(start(wish["run"]))
    if "start" in wish:
        started[wish["as"]] = start(wish["start"])
        return {"pid": started[wish["as"]].pid}
    if "end" in wish:
        return result(started.pop(wish["end"]))
    if "ask" in wish:
        return {"said": ask(wish["ask"])}
    if "ended" in wish:
        return {"codes": sorted(p.returncode for p in started.values() if p.poll() is not None)}
    if "write" in wish:
        with open(wish["write"], "w") as file:
            file.write(wish["text"])
        return {}
    if "kill" in wish:
        os.kill(wish["kill"], signal.SIGTERM)
        return {}
    sys.exit(wish["exit"])


def run(args):
    say("pid", os.getpid())
    for number, line in enumerate(sys.stdin):
        try:
            answer = take(json.loads(line))
        except OSError as error:
            answer = {"errno": error.errno}
        except subprocess.TimeoutExpired:
            answer = {"late": True}
        say(number, json.dumps(answer))


main(run)
