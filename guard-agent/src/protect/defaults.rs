//! What is protected without being asked for. Each rule can be switched off by its name, with a reason.
//!
//! It must not grow rules that ordinary work of an agent runs into: names here are executed or trusted by others than the
//! session, or are secrets. Fails: a path of the configuration that cannot be protected is an error that names it.

use std::path::{Path, PathBuf};

use super::Rule;
use crate::config::Config;

/// Read by shells and services that nobody governs, in each home.
const START_FILES: &[&str] = &[
    "~/.bashrc",
    "~/.bash_profile",
    "~/.bash_login",
    "~/.bash_logout",
    "~/.bash_aliases",
    "~/.profile",
    "~/.zshrc",
    "~/.zshenv",
    "~/.zprofile",
    "~/.zlogin",
    "~/.zlogout",
    "~/.kshrc",
    "~/.cshrc",
    "~/.tcshrc",
    "~/.login",
    "~/.inputrc",
    "~/.config/fish/**",
    "~/.ssh/**",
    "~/.gitconfig",
    "~/.config/git/**",
    "~/.tmux.conf",
    "~/.config/tmux/**",
    "~/.screenrc",
    "~/.vimrc",
    "~/.vim/**",
    "~/.config/nvim/**",
    "~/.emacs",
    "~/.pam_environment",
    "~/.xprofile",
    "~/.xsession",
    "~/.xsessionrc",
    "~/.xinitrc",
    "~/.forward",
    "~/.config/environment.d/**",
    "~/.config/systemd/**",
    "~/.local/share/systemd/**",
    "~/.config/autostart/**",
    "~/.local/share/dbus-1/**",
    "~/.gnupg/**",
];

/// Folders that stand in front in the search path of ungoverned shells.
const USER_PROGRAMS: &[&str] = &["~/bin/**", "~/.local/bin/**"];

/// Executed or trusted by the system: what a root session could change.
const SYSTEM_FILES: &[&str] = &[
    "/etc/profile",
    "/etc/profile.d/**",
    "/etc/bash.bashrc",
    "/etc/zsh/**",
    "/etc/environment",
    "/etc/security/**",
    "/etc/pam.conf",
    "/etc/pam.d/**",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d/**",
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/cron.d/**",
    "/etc/cron.hourly/**",
    "/etc/cron.daily/**",
    "/etc/cron.weekly/**",
    "/etc/cron.monthly/**",
    "/var/spool/cron/**",
    "/var/spool/at/**",
    "/var/spool/anacron/**",
    "/etc/systemd/**",
    "/run/systemd/system/**",
    "/run/systemd/transient/**",
    "/usr/lib/systemd/**",
    "/usr/local/lib/systemd/**",
    "/etc/init.d/**",
    "/etc/rc.local",
    "/etc/xdg/autostart/**",
    "/etc/ssh/**",
    "/etc/sudoers",
    "/etc/sudoers.d/**",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/udev/**",
    "/usr/lib/udev/**",
    "/etc/modprobe.d/**",
    "/etc/modules-load.d/**",
    "/etc/sysctl.conf",
    "/etc/sysctl.d/**",
    "/etc/binfmt.d/**",
    "/etc/tmpfiles.d/**",
    "/etc/apt/apt.conf.d/**",
    "/etc/logrotate.d/**",
    "/etc/polkit-1/**",
    "/etc/dbus-1/**",
    "/etc/update-motd.d/**",
    "/boot/**",
];

/// Secrets, and the programs that need them. A program that is a script is its interpreter: it cannot be named.
const CREDENTIALS: &[(&str, &[&str], &[&str])] = &[
    (
        "ssh-keys",
        &[
            "~/.ssh/id_*",
            "~/.ssh/id_rsa",
            "~/.ssh/id_ecdsa",
            "~/.ssh/id_ecdsa_sk",
            "~/.ssh/id_ed25519",
            "~/.ssh/id_ed25519_sk",
            "~/.ssh/id_dsa",
            "~/.ssh/*.pem",
            "~/.ssh/identity",
        ],
        &["/usr/bin/ssh", "/usr/bin/ssh-add"],
    ),
    // No program of a session decides for a reviewer, guardctl neither, nor calls the collector as whoever logged in.
    ("review-keys", &["~/.local/state/guard/review.key", "~/.local/state/guard/login.pem"], &[]),
    ("gpg-keys", &["~/.gnupg/private-keys-v1.d/**", "~/.gnupg/secring.gpg"], &["/usr/bin/gpg-agent"]),
    ("aws-credentials", &["~/.aws/**"], &["/usr/local/bin/aws", "/usr/bin/aws", "/usr/bin/terraform", "/usr/bin/tofu"]),
    (
        "kube-config",
        &["~/.kube/**"],
        &["/usr/bin/kubectl", "/usr/local/bin/kubectl", "/usr/bin/helm", "/usr/local/bin/helm"],
    ),
    (
        "docker-config",
        &["~/.docker/config.json", "~/.config/containers/auth.json"],
        &["/usr/bin/docker", "/usr/bin/podman", "/usr/bin/buildah", "/usr/bin/skopeo"],
    ),
    ("gcloud-credentials", &["~/.config/gcloud/**"], &[]),
    ("azure-credentials", &["~/.azure/**"], &[]),
    (
        "netrc",
        &["~/.netrc"],
        &["/usr/bin/curl", "/usr/bin/wget", "/usr/lib/git-core/git-remote-http", "/usr/lib/git-core/git-remote-https"],
    ),
    ("git-credentials", &["~/.git-credentials"], &["/usr/bin/git", "/usr/lib/git-core/git-credential-store"]),
    ("forge-tokens", &["~/.config/gh/hosts.yml", "~/.config/glab-cli/**"], &["/usr/bin/gh", "/usr/bin/glab"]),
    ("registry-tokens", &["~/.pypirc", "~/.cargo/credentials", "~/.cargo/credentials.toml"], &["/usr/bin/cargo"]),
    ("vault-token", &["~/.vault-token"], &["/usr/bin/vault", "/usr/bin/bao"]),
    ("terraform-credentials", &["~/.terraform.d/credentials.tfrc.json"], &["/usr/bin/terraform", "/usr/bin/tofu"]),
    ("password-stores", &["~/.password-store/**", "~/.local/share/keyrings/**"], &["/usr/bin/gnome-keyring-daemon"]),
    ("database-passwords", &["~/.pgpass", "~/.my.cnf"], &["/usr/bin/mariadb", "/usr/bin/mysql"]),
    (
        "browser-profiles",
        &["~/.mozilla/**", "~/.config/google-chrome/**", "~/.config/chromium/**"],
        &["/usr/lib/firefox/firefox", "/opt/google/chrome/chrome", "/usr/lib/chromium/chromium"],
    ),
    (
        "system-secrets",
        &[
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/shadow-",
            "/etc/gshadow-",
            "/etc/ssh/ssh_host_*_key",
            "/etc/krb5.keytab",
        ],
        &["/usr/bin/su", "/usr/bin/sudo", "/usr/bin/login", "/usr/sbin/unix_chkpwd", "/usr/sbin/sshd"],
    ),
];

/// All of them.
pub fn rules(config: &Config) -> Result<Vec<Rule>, String> {
    let mut rules = vec![
        Rule::new("guard-keys", &guard_keys(config), true, &[])?,
        Rule::new("guard-files", &guard_files(config), false, &[])?,
    ];
    for (name, paths, readers) in CREDENTIALS {
        let readers: Vec<PathBuf> = readers.iter().map(PathBuf::from).collect();
        rules.push(Rule::new(name, paths, true, &readers)?);
    }
    rules.push(Rule::new("start-files", START_FILES, false, &[])?);
    rules.push(Rule::new("user-programs", USER_PROGRAMS, false, &[])?);
    rules.push(Rule::new("system-files", SYSTEM_FILES, false, &[])?);
    Ok(rules)
}

/// Keys, state, records: the daemon's and the reviewers'.
fn guard_keys(config: &Config) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/var/lib/guard/**", "/etc/guard/tls/**", "~/.config/guard/**"].map(String::from).into();
    paths.push(below(&config.node.state_dir));
    paths.push(below(&config.journal.dir));
    let key = config.collector.key.display();
    paths.push(key.to_string());
    // While it is renewed.
    paths.extend([format!("{key}.next"), format!("{key}.next.half"), format!("{key}.lock")]);
    paths.extend(config.credentials.as_ref().map(|c| c.secret_id_file.display().to_string()));
    paths
}

/// Configuration, sockets, pins, programs.
fn guard_files(config: &Config) -> Vec<String> {
    let mut paths: Vec<String> = ["/etc/guard/**", "/run/guard/**", "~/.local/state/guard/**"].map(String::from).into();
    paths.push(below(&config.kernel.pin_dir));
    paths.push(config.control.socket.display().to_string());
    if let Ok(own) = std::env::current_exe()
        && let Some(folder) = own.parent()
    {
        let programs = ["guard-agent", "guardctl", "guard-collector"];
        paths.extend(programs.iter().map(|p| folder.join(p).display().to_string()));
    }
    paths
}

fn below(folder: &Path) -> String {
    format!("{}/**", folder.display().to_string().trim_end_matches('/'))
}
