//! A private PostgreSQL for the time of a benchmark: its own folder, an unprivileged user, no network, every commit synced.
//!
//! It must not touch a server that runs already. Without an installed PostgreSQL it unpacks Debian's. Fails: with what the
//! server said.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, host};

const HOME: &str = "/usr/lib/postgresql";
/// An unprivileged user of every Debian: PostgreSQL refuses to run as root.
const NOBODY: &str = "nobody";

/// The server, running.
pub struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    socket: tempfile::TempDir,
}

impl Postgres {
    /// Makes a cluster in a folder and starts it.
    pub fn start(place: &Path) -> Result<Self> {
        let bin = installed()?;
        let data = place.join("postgres");
        std::fs::create_dir(&data)?;
        // Paths of sockets are short.
        let socket = tempfile::Builder::new().prefix("guard-pg-").tempdir()?;
        if host::is_root() {
            host::run_quiet(host::cmd("chown", [NOBODY]).args([data.as_path(), socket.path()]))?;
            open_the_way(&data)?;
        }
        let this = Self { bin, data, socket };
        host::run_quiet(this.command("initdb").args(["-U", "guard", "-A", "trust", "-E", "UTF8", "--no-locale"]))?;
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = on\nsynchronous_commit = on\n\
             shared_buffers = 1GB\nmax_wal_size = 8GB\nwal_buffers = 64MB\ncheckpoint_timeout = 30min\n\
             autovacuum = off\n",
            this.socket.path().display()
        );
        let file = this.data.join("postgresql.conf");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, text + &settings)?;
        let log = this.data.join("server.log").display().to_string();
        host::run_quiet(this.command("pg_ctl").args(["-w", "-l", &log, "start"]))
            .with_context(|| format!("the server says why in {log}"))?;
        Ok(this)
    }

    /// The client.
    pub fn psql(&self) -> &Path {
        &self.bin
    }

    /// Folder of the socket.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// What its programs need to find their libraries.
    pub fn environment(&self) -> Option<(&'static str, PathBuf)> {
        libraries(&self.bin).map(|dir| ("LD_LIBRARY_PATH", dir))
    }

    fn command(&self, name: &str) -> Command {
        let program = self.bin.with_file_name(name);
        let mut command = match host::is_root() {
            true => {
                let mut command = host::cmd("setpriv", ["--reuid", NOBODY, "--regid", "nogroup", "--clear-groups"]);
                command.arg(program);
                command
            }
            false => Command::new(program),
        };
        command.arg("-D").arg(&self.data).current_dir("/").envs(self.environment());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = host::run_quiet(self.command("pg_ctl").args(["-m", "immediate", "stop"])) {
            host::say(&format!("PostgreSQL was not stopped: {error:#}"));
        }
    }
}

/// The newest installed `psql` beside its server; without one, Debian's packages, unpacked under `target/`.
fn installed() -> Result<PathBuf> {
    if let Some(found) = newest(Path::new(HOME)) {
        return Ok(found);
    }
    host::say("fetching PostgreSQL");
    let unpacked = host::target().join("postgresql");
    host::fill_dir(&unpacked, |dir| apt::Suites::open(&[&apt::host_suite()?])?.unpack_closure(&["postgresql"], dir))?;
    let home = unpacked.join(HOME.trim_start_matches('/'));
    newest(&home).with_context(|| format!("the packages put no server into {}", home.display()))
}

fn newest(home: &Path) -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(home)
        .ok()?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin/psql"))))
        .filter(|(_, psql)| psql.is_file() && psql.with_file_name("initdb").is_file())
        .collect();
    found.sort();
    found.pop().map(|(_, psql)| psql)
}

/// Where the libraries of an unpacked server lie.
fn libraries(psql: &Path) -> Option<PathBuf> {
    let usr = psql.ancestors().nth(5).filter(|usr| *usr != Path::new("/usr"))?;
    Some(usr.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH)))
}

/// The server's user has to be able to go down to its folder.
fn open_the_way(data: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The one above was made for this run, with mode 0700.
    let above = data.parent().context("a folder without parent")?;
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o711))?;
    for folder in above.ancestors().skip(1) {
        let mode = std::fs::metadata(folder)?.permissions().mode();
        if mode & 0o001 == 0 {
            bail!(
                "PostgreSQL's user cannot go through {}; set CARGO_TARGET_DIR to a folder it can reach",
                folder.display()
            );
        }
    }
    Ok(())
}
