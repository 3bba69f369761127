#!/usr/bin/env python3
"""Replays what an agent once ran.

prepare TRACE USER PLAN MOST: reads one session's commands, keeps the first MOST whose programs this machine has, makes the folders and
named files that they expect (owned by USER), writes the plan and prints the folder to start in. Runs as root, ungoverned.

run PLAN: runs the plan's commands one after another, each by `bash -c` in its folder as agents do. Runs governed.
"""
import json
import os
import pwd
import re
import shutil
import subprocess
import sys

BUILTINS = {"cd", "echo", "printf", "pwd", "true", "false", "test", "[", "export", "set", "unset", "source", ".", "type",
            "command", "exit", "read", "wait", "for", "if", "while", ":", "ulimit", "umask", "kill", "local", "return"}
# Where folders and files may be made: places of people and scratch, never the system's own.
PLACES = ("/home/", "/tmp/", "/app/", "/workspace/", "/work/")
SECONDS_PER_COMMAND = 30
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def programs(record):
    execs = record.get("execs") or ([record["argv"]] if record.get("argv") else [])
    return [e[0] for e in execs if e]


def runnable(record):
    names = programs(record)
    if not names or record.get("truncated"):
        return False
    return all(n in BUILTINS or shutil.which(n, path=PATH) for n in names)


def named_files(record, cwd):
    for argv in record.get("execs") or [record.get("argv") or []]:
        for word in argv[1:]:
            word = word.strip("'\"")
            if re.fullmatch(r"[\w./+-]*[\w+-]\.[A-Za-z]\w{0,5}", word) and not word.startswith("-"):
                yield os.path.normpath(os.path.join(cwd, word))


def named_folders(record, cwd):
    words = re.findall(r"(?:^|&&|;)\s*cd\s+([\w./+-]+)", record["shell"])
    for argv in record.get("execs") or [record.get("argv") or []]:
        words += [w for w in argv[1:] if re.fullmatch(r"\.?[\w+-]*/[\w/+-]+/?", w)]
    for word in words:
        yield os.path.normpath(os.path.join(cwd, word))


def make(path, user, text=None):
    """Makes a folder, or a file when there is text, below PLACES; existing things stay as they are."""
    if not (path + "/").startswith(PLACES) or os.path.exists(path):
        return
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make(parent, user)
    if not os.path.isdir(parent):
        return
    if text is None:
        os.mkdir(path)
    else:
        with open(path, "w") as file:
            file.write(text)
    os.chown(path, user.pw_uid, user.pw_gid)


def prepare(trace, user_name, plan_file, most):
    user = pwd.getpwnam(user_name)
    with open(trace) as file:
        records = json.load(file)
    start = next((r["cwd"] for r in records if r.get("cwd")), f"/home/{user_name}/work")
    make(start, user)
    if not os.path.isdir(start):
        start = f"/home/{user_name}/work"
        make(start, user)
    commands = []
    for record in records:
        if not runnable(record) or len(commands) >= int(most):
            continue
        cwd = record.get("cwd") or start
        make(cwd, user)
        cwd = cwd if os.path.isdir(cwd) else start
        for path in named_folders(record, cwd):
            make(path, user)
        for path in named_files(record, cwd):
            make(path, user, f"// {os.path.basename(path)}\nfirst line\nsecond line\nTODO: third line\n")
        commands.append({"cwd": cwd, "shell": record["shell"]})
    if not os.path.exists(os.path.join(start, ".git")):
        as_user = ["setpriv", "--reuid", user_name, "--regid", user_name, "--init-groups", "env", f"HOME={user.pw_dir}"]
        git = as_user + ["git", "-C", start, "-c", "user.name=a", "-c", "user.email=a@example.org"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--allow-empty", "-m", "start"]):
            subprocess.run(git + words, check=False, stdout=sys.stderr)
    plan = {"name": records[0]["session"], "commands": commands, "skipped": len(records) - len(commands)}
    with open(plan_file, "w") as file:
        json.dump(plan, file)
    print(start)


def run(plan_file):
    with open(plan_file) as file:
        plan = json.load(file)
    for command in plan["commands"]:
        print("$", command["shell"], flush=True)
        try:
            done = subprocess.run(["/bin/bash", "-c", command["shell"]], cwd=command["cwd"], stdin=subprocess.DEVNULL,
                                  timeout=SECONDS_PER_COMMAND, check=False)
            print("  exit", done.returncode, flush=True)
        except (subprocess.TimeoutExpired, OSError) as error:
            print(" ", error, flush=True)


if __name__ == "__main__":
    {"prepare": prepare, "run": run}[sys.argv[1]](*sys.argv[2:])
