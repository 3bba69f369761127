"""paths.py HOME NAME…: tries each named way to change or read what is protected below HOME; prints its result."""
import ctypes
import os
import shutil

from common import main, say


def append(path, **how):
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND, **how))


def write(path):
    with open(path, "w") as file:
        file.write("evil")


def read(path):
    with open(path) as file:
        file.read()


def rename_over(home, name):
    write(home + "/fresh")
    os.rename(home + "/fresh", home + "/" + name)


def exchange(home):
    write(home + "/fresh")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, (home + "/fresh").encode(), -100, (home + "/.bashrc").encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def move_in(home):
    os.makedirs(home + "/evil/autostart", exist_ok=True)
    os.rename(home + "/evil", home + "/.config")


def tmpfile(home):
    fd = os.open(home, os.O_TMPFILE | os.O_WRONLY)
    # With a folder's descriptor, else Python does not follow the link in /proc.
    os.link("self/fd/%d" % fd, home + "/.zshrc", src_dir_fd=os.open("/proc", os.O_PATH), follow_symlinks=True)


def by_descriptor(home):
    fd = os.open(home + "/.bashrc", os.O_RDONLY)
    append("/proc/self/fd/%d" % fd)


def by_folder(home):
    folder = os.open(home + "/work", os.O_DIRECTORY)
    append("../.bashrc", dir_fd=folder)


def by_link(home):
    if not os.path.islink(home + "/work/link"):
        os.symlink(home + "/.bashrc", home + "/work/link")
    append(home + "/work/link")


WAYS = {
    "redirect": lambda h: append(h + "/.bashrc"),
    "redirect_fresh": lambda h: write(h + "/.zshenv"),
    "copy_over": lambda h: shutil.copyfile("/etc/hostname", h + "/.bashrc"),
    "rename_over": lambda h: rename_over(h, ".bashrc"),
    "rename_fresh": lambda h: rename_over(h, ".zprofile"),
    "rename_away": lambda h: os.rename(h + "/.bashrc", h + "/away"),
    "exchange": exchange,
    "unlink": lambda h: os.unlink(h + "/.bashrc"),
    "hard_link": lambda h: os.link(h + "/.bashrc", h + "/work/hard"),
    "old_hard_link": lambda h: append(h + "/work/old"),
    "symlink_fresh": lambda h: os.symlink("/tmp/evil", h + "/.profile"),
    "symlink_folder": lambda h: os.symlink(h + "/work", h + "/.config"),
    "by_link": by_link,
    "link_target": lambda h: append(h + "/dot/gitconfig"),
    "move_in": move_in,
    "mkdir_chain": lambda h: os.makedirs(h + "/.config/autostart", exist_ok=True),
    "rename_ancestor": lambda h: os.rename(h + "/.config", h + "/away"),
    "mkfifo": lambda h: os.mkfifo(h + "/.zlogin"),
    "truncate": lambda h: os.truncate(h + "/.bashrc", 0),
    "chmod": lambda h: os.chmod(h + "/.bashrc", 0o777),
    "utime": lambda h: os.utime(h + "/.bashrc", (1, 1)),
    "setxattr": lambda h: os.setxattr(h + "/.bashrc", "user.evil", b"1"),
    "tmpfile": tmpfile,
    "by_descriptor": by_descriptor,
    "by_folder": by_folder,
    "by_proc_root": lambda h: append("/proc/self/root" + h + "/.bashrc"),
    "authorized_keys": lambda h: write(h + "/.ssh/authorized_keys"),
    "read_key": lambda h: read(h + "/.ssh/id_test"),
    "link_key": lambda h: os.link(h + "/.ssh/id_test", h + "/work/key"),
    "read_diary": lambda h: read(h + "/diary"),
    # As root.
    "guard_key": lambda h: read("/var/lib/guard/collector/clients/node-guest/key.pem"),
    "guard_config": lambda h: append("/etc/guard/agent.toml"),
    "guard_journal": lambda h: shutil.rmtree("/var/lib/guard/journal"),
    "guard_pins": lambda h: shutil.rmtree("/sys/fs/bpf/guard"),
    "guard_program": lambda h: os.rename("/usr/local/bin/guard-agent", "/usr/local/bin/away"),
    "cron": lambda h: write("/etc/cron.d/evil"),
    "crontab": lambda h: os.makedirs("/var/spool/cron/crontabs"),
    "at_job": lambda h: os.makedirs("/var/spool/at"),
    "unit": lambda h: write("/etc/systemd/system/evil.service"),
    "passwd": lambda h: append("/etc/passwd"),
    # These must work.
    "may_read": lambda h: read(h + "/.bashrc"),
    "may_read_public": lambda h: read(h + "/.ssh/id_test.pub"),
    "may_write": lambda h: write(h + "/ordinary"),
    "may_configure": lambda h: (os.makedirs(h + "/.config/other", exist_ok=True), write(h + "/.config/other/x")),
}


def run(args):
    for name in args[1:]:
        try:
            WAYS[name](args[0])
            say(name, "done")
        except OSError as error:
            say(name, "errno", error.errno)
        except shutil.Error as error:
            say(name, "errno", error)


main(run)
