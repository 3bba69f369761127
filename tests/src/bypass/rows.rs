//! The table.

use Users::{Both, Root, User};

use super::race::what_ran_was_judged;
use super::{Record, Row, Users};

/// It ran: recorded as allowed before.
const RAN: Record = exec("/usr/local/lib/guard-bypass/ran");
/// It went to a person, and nobody answered.
const ASKED: Record = Record { kind: "exec_request", says: "\"argv\"", disposition: "" };
/// Whatever is recorded: the result says all.
const ANY: Record = Record { kind: "*", says: "", disposition: "" };
/// It never was an exec.
const NOTHING: Record = Record { kind: "", says: "", disposition: "" };

const fn exec(says: &'static str) -> Record {
    Record { kind: "exec", says, disposition: "allowed" }
}

const fn denied(says: &'static str) -> Record {
    Record { kind: "exec_unjudged | exec", says, disposition: "denied" }
}

const fn failed(says: &'static str) -> Record {
    Record { kind: "exec_unjudged | exec_outcome", says, disposition: "failed" }
}

const fn guard(says: &'static str) -> Record {
    Record { kind: "guard_refusal", says, disposition: "" }
}

const fn row(
    name: &'static str,
    run: &'static [&'static str],
    users: Users,
    prints: &'static str,
    record: Record,
) -> Row {
    Row { name, run, users, prints, record, also: None }
}

const fn race(name: &'static str, run: &'static [&'static str]) -> Row {
    Row { also: Some(what_ran_was_judged), ..row(name, run, User, "raced", RAN) }
}

/// One line for each technique; see [`Row`].
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // Files without a place.
    row("memfd_at", &["memfd", "at"], Both, "errno 1", denied("no_grant")),
    row("memfd_path", &["memfd", "path"], Both, "errno 1", denied("no_grant")),
    row("deleted_file", &["unnamed", "deleted"], Both, "errno 1", ASKED),
    row("tmpfile", &["unnamed", "tmpfile"], Both, "errno 1", ASKED),
    // execveat.
    row("at_empty_path", &["at", "empty"], Both, "ran 42", RAN),
    row("at_opath", &["at", "opath"], Both, "ran 42", RAN),
    row("at_dir", &["at", "dir"], Both, "ran 42", RAN),
    row("at_dir_nofollow", &["at", "dir_nofollow"], Both, "ran 42", RAN),
    row("at_link", &["at", "link"], Both, "ran 42", RAN),
    row("at_link_nofollow", &["at", "link_nofollow"], Both, "errno 40", failed("\"errno\":40")),
    row("at_absolute", &["at", "absolute"], Both, "ran 42", RAN),
    row("at_unknown_flag", &["at", "no_flag"], Both, "errno 22", failed("\"errno\":22")),
    row("at_check_only", &["at", "check"], Both, "ran 7 | errno 22", Record { kind: "exec_outcome | exec_unjudged", says: "exec", disposition: "failed" }),
    row("at_script_fd", &["at", "script_fd"], Both, "errno 1", ASKED),
    row("at_script_fd_cloexec", &["at", "script_fd_cloexec"], Both, "errno 2 | errno 1", Record { kind: "exec_unjudged | exec_outcome | exec_request", says: "exec", disposition: "" }),
    row("at_script_dir", &["at", "script_dir"], Both, "errno 1", ASKED),
    // Tasks of every kind.
    row("thread", &["how", "thread"], Both, "ran 42", RAN),
    row("vfork", &["how", "vfork"], Both, "ran 42", RAN),
    row("posix_spawn", &["how", "posix_spawn"], Both, "ran 42", RAN),
    row("daemonised", &["how", "daemonised"], Both, "ran 42", RAN),
    row("pid_namespace", &["how", "pid_namespace"], Root, "ran 42 | errno 1", Record { kind: "exec | guard_refusal", says: "pid", disposition: "" }),
    row("chroot", &["how", "chroot"], Root, "errno 1", Record { kind: "exec_request | guard_refusal", says: "pid", disposition: "" }),
    // Other ABIs.
    row("int80", &["abi", "int80"], Both, "errno 1", denied("no_entry")),
    row("x32", &["abi", "x32"], Both, "errno 38", NOTHING),
    row("x32_at", &["abi", "x32_at"], Both, "errno 38", NOTHING),
    row("x32_bit_native_number", &["abi", "native_number"], Both, "errno 38", NOTHING),
    row("32_bit_program", &["run", "/usr/local/lib/guard-bypass/thirtytwo"], Both, "ran 42", exec("thirtytwo")),
    row("32_bit_program_execs", &["run", "/usr/local/lib/guard-bypass/thirtytwo", "x"], Both, "ran 71", denied("no_entry")),
    // Scripts.
    row("script", &["run", "/usr/local/lib/guard-bypass/script"], Both, "ran 42", exec("\"role\":\"interpreter\"")),
    row("script_options", &["run", "/usr/local/lib/guard-bypass/script_opts"], Both, "ran 1", exec("script_opts")),
    row("script_without_line_end", &["run", "/usr/local/lib/guard-bypass/script_no_end"], Both, "ran 0", exec("script_no_end")),
    row("script_to_device", &["run", "/usr/local/lib/guard-bypass/script_device"], Both, "errno 1", denied("not_understood")),
    row("script_to_folder", &["run", "/usr/local/lib/guard-bypass/script_folder"], Both, "errno 1", denied("not_understood")),
    row("script_to_relative", &["run", "/usr/local/lib/guard-bypass/script_relative"], Both, "errno 1", denied("not_understood")),
    row("script_to_own_program", &["run", "/usr/local/lib/guard-bypass/script_self"], Both, "errno 1", denied("not_understood")),
    row("script_of_no_format", &["run", "/usr/local/lib/guard-bypass/script_unknown"], Both, "errno 8", failed("\"errno\":8")),
    row("script_nested_4", &["run", "/usr/local/lib/guard-bypass/nest4"], Both, "ran 42", exec("nest1")),
    row("script_nested_5", &["run", "/usr/local/lib/guard-bypass/nest5"], Both, "ran 42", exec("nest1")),
    row("script_nested_6", &["run", "/usr/local/lib/guard-bypass/nest6"], Both, "errno 1", denied("not_understood")),
    // Names.
    row("proc_self_root", &["named", "self_root"], Both, "ran 42", RAN),
    row("proc_self_cwd", &["named", "self_cwd"], Both, "ran 42", RAN),
    row("hard_link", &["named", "hard_link"], User, "link errno 1", NOTHING),
    row("hard_link_as_root", &["named", "hard_link"], Root, "errno 1", ASKED),
    row("symlink_chain", &["named", "chain_39"], Both, "ran 42", RAN),
    row("symlink_chain_too_long", &["named", "chain_41"], Both, "errno 40", failed("\"errno\":40")),
    row("path_of_4095", &["named", "nearly_long"], Both, "ran 42", RAN),
    row("path_too_long", &["named", "long"], Both, "errno 36", failed("\"errno\":36")),
    row("path_beyond_4096", &["named", "deep"], Both, "errno 1", Record { kind: "exec_request | exec_unjudged", says: "exec", disposition: "" }),
    row("own_copy", &["named", "copy"], Both, "errno 1", ASKED),
    row("no_file", &["named", "no_file"], Both, "errno 2", failed("\"errno\":2")),
    row("folder", &["named", "folder"], Both, "errno 13", failed("\"errno\":13")),
    row("no_pointer", &["named", "no_pointer"], Both, "errno 14", failed("\"errno\":14")),
    // The dynamic loader, and what it loads.
    row("loader", &["loader", "direct"], Both, "errno 1", denied("builtin.loader")),
    row("loader_hard_link", &["loader", "hard_link"], User, "link errno 1", NOTHING),
    // On an overlay the link itself may need a capability that root sessions do not have.
    row("loader_hard_link_as_root", &["loader", "hard_link"], Root, "errno 1 | link errno 1", Record { kind: "exec | guard_refusal", says: "pid", disposition: "" }),
    row("loader_copy", &["loader", "copy"], Both, "errno 1", denied("builtin.loader")),
    row("loader_by_other_name", &["loader", "other_folder"], Both, "errno 1", denied("builtin.loader")),
    row("preload", &["run", "LD_PRELOAD=/usr/local/lib/guard-bypass/preload.so", "/usr/bin/true"], Both, "errno 1", ASKED),
    // Formats and interpreters.
    row("binfmt_misc", &["named", "/usr/local/lib/guard-bypass/mapped"], Both, "errno 1", Record { kind: "exec_outcome", says: "wrong_file", disposition: "failed" }),
    row("shell_text", &["run", "/bin/sh", "\\dc", "rm\\s\\drf\\s/home"], Both, "errno 1", denied("\"tier\":\"deny\"")),
    row("shell_stdin", &["run", "</etc/passwd", "/bin/sh"], Both, "errno 1", ASKED),
    row("python_text", &["run", "/usr/bin/python3", "\\dc", "print()"], Both, "errno 1", ASKED),
    row("python_stdin", &["run", "</etc/passwd", "/usr/bin/python3"], Both, "errno 1", ASKED),
    row("perl_text", &["run", "/usr/bin/perl", "\\de", "print"], Both, "errno 1", ASKED),
    // Argument and environment vectors.
    row("argv_2_mb", &["args", "two_mb"], Both, "errno 1", Record { kind: "exec_request", says: "builtin.too-long", disposition: "" }),
    row("argv_6_mb", &["args", "six_mb"], Both, "errno 1", Record { kind: "exec_request | exec_unjudged", says: "argv", disposition: "" }),
    row("argv_string_too_long", &["args", "too_long"], Both, "errno 7 | errno 1", Record { kind: "exec_unjudged | exec_outcome | exec_request", says: "exec", disposition: "" }),
    row("argv_too_much", &["args", "too_much"], Both, "errno 7 | errno 1", Record { kind: "exec_unjudged | exec_outcome | exec_request", says: "exec", disposition: "" }),
    row("argv_100000", &["args", "many"], Both, "errno 1", Record { kind: "exec_request", says: "\"argv_count\":100001", disposition: "" }),
    row("env_2_mb", &["args", "huge_env"], Both, "ran 42", RAN),
    row("argc_0", &["args", "argc_0"], Both, "ran 42", RAN),
    row("argv_null", &["args", "no_argv"], Both, "ran 42", RAN),
    row("argv0_empty", &["args", "empty_argv0"], Both, "ran 42", RAN),
    row("argv_not_utf8", &["args", "bytes"], Both, "ran 42", exec("//6A")),
    row("argv_bad_pointer", &["args", "bad_pointer"], Both, "errno 14 | errno 1", Record { kind: "exec_unjudged", says: "exec", disposition: "" }),
    row("argv_bad_vector", &["args", "bad_vector"], Both, "errno 14 | errno 1", Record { kind: "exec_unjudged", says: "exec", disposition: "" }),
    // Arguments that are not in memory.
    row("argv_file_page_untouched", &["resident", "untouched"], Both, "ran 42", exec("resident-word")),
    row("argv_dontneed", &["resident", "dontneed"], Both, "ran 42", exec("resident-word")),
    row("argv_swapped_out", &["resident", "swapped"], Both, "ran 42", exec("resident-word")),
    row("argv_userfaultfd", &["uffd"], User, "errno 1", NOTHING),
    row("argv_userfaultfd_as_root", &["uffd"], Root, "errno 1 | killed 9", Record { kind: "guard_refusal | exec_unjudged", says: "uid", disposition: "" }),
    row("argv_fuse_page", &["resident", "fuse"], Both, "killed 9 | errno 14", Record { kind: "exec_unjudged", says: "exec", disposition: "" }),
    row("fuse_program", &["named", "/srv/foreign/ran"], Both, "errno 1", Record { kind: "exec_request", says: "builtin.foreign-file-system", disposition: "" }),
    // Races.
    race("race_argv_leader", &["race", "argv", "leader", "TRIES=300"]),
    race("race_argv_thread", &["race", "argv", "thread", "TRIES=250"]),
    race("race_env_leader", &["race", "env", "leader", "TRIES=200"]),
    race("race_env_thread", &["race", "env", "thread", "TRIES=150"]),
    race("race_border", &["race", "border", "leader", "TRIES=150"]),
    // Other processes' memory.
    // ESRCH: on a slow machine the sibling's hold has ended, and it with it.
    row("sibling_writev", &["sibling", "writev"], Both, "errno 1, then ran 71 | errno 3, then ran 71", guard("ptrace")),
    row("sibling_mem", &["sibling", "mem"], Both, "errno 13, then ran 71 | errno 1, then ran 71", guard("p")),
    row("sibling_seize", &["sibling", "seize"], Both, "errno 1, then ran 71", guard("ptrace")),
    // Files that come another way, mounts, cgroups.
    row("by_handle", &["handle", "by_handle"], User, "open_by_handle_at errno 1 | name_to_handle_at errno 95", NOTHING),
    row("by_handle_as_root", &["handle", "by_handle"], Root, "ran 42 | errno 1 | open_by_handle_at errno 1 | name_to_handle_at errno 95", ANY),
    row("received_descriptor", &["handle", "received", "SOCKET"], Both, "errno 1 | connect errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("root_of_process_outside", &["handle", "outside", "OUTSIDE"], Both, "errno 1 | errno 13", Record { kind: "exec_unjudged", says: "path", disposition: "" }),
    row("opath_of_process_outside", &["handle", "outside_fd", "OUTSIDE"], Both, "errno 1 | open errno 13", Record { kind: "exec_unjudged", says: "path", disposition: "" }),
    row("mount_bind", &["mount", "bind"], Root, "errno 1 | mount errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("mount_tmpfs", &["mount", "tmpfs"], Root, "errno 1 | mount errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("mount_namespace", &["mount", "namespace"], Root, "errno 1 | unshare errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("mount_user_namespace", &["mount", "user_namespace"], Both, "errno 1 | unshare errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("mount_pivot", &["mount", "pivot"], Root, "errno 1 | unshare errno 1 | mount errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("mount_detached", &["mount", "detached"], Root, "errno 1 | open_tree errno 1", Record { kind: "exec_unjudged | guard_refusal", says: "pid", disposition: "" }),
    row("cgroup_move", &["cgroup", "move"], Root, "open errno 1", guard("cgroup_write")),
    row("cgroup_into", &["cgroup", "into"], Root, "clone3 errno 1", guard("cgroup_write")),
];
