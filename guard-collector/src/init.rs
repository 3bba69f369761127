//! `guard-collector init` and `client`: the folder of a new collector, and certificates for people and nodes.
//!
//! It must not overwrite anything: a folder that is not empty and an `--out` that holds certificates are refused. What is
//! issued is put on record by the collector, at its next start or now, so that it can be revoked. Keys are
//! 0600 in folders of 0700; the admin key, which signs a successor of the log, is made here and has to be taken elsewhere. Fails: an error that names the path; what was written until then stays for the person to look at.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::record::HostId;
use guard_log::signer::KeyFile;
use guard_log::store::Store;

use crate::config::{self, Config};
use crate::exit::{CollectorError, Exit, Result};
use crate::identity::{Caller, Role};
use crate::orders::{self, Order};
use crate::pki::{self, About, Authority, CLIENT_TTL, SERVER_TTL};
use crate::{keys, tokens};

/// The admin key, to be taken off the machine, and what checks its signatures.
pub const ADMIN_KEY: &str = "admin.skey";
const ADMIN_VKEY: &str = "admin.vkey";

fn failed(what: &str, path: &Path, cause: &std::io::Error) -> CollectorError {
    CollectorError::io(Exit::Unavailable, format_args!("cannot {what} {}", path.display()), cause)
}

fn folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed("make", path, &e))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|e| failed("write", path, &e))
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed("sync", path, &e))
}

fn issue(authority: &Authority, caller: &Caller, ttl: Duration, out: &Path) -> Result<About> {
    let issued = authority.client(caller, ttl)?;
    folder(out)?;
    for (name, text, mode) in
        [("ca.pem", authority.pem(), 0o644), ("cert.pem", &issued.cert, 0o644), ("key.pem", &issued.key, 0o600)]
    {
        write(&out.join(name), text, mode)?;
    }
    sync(out)?;
    Ok(issued.about)
}

/// Makes a new collector in an empty folder.
pub fn init(dir: &Path, name: &str, hosts: &[String]) -> Result<()> {
    let node = pki::caller(name, Role::Node)?;
    folder(dir)?;
    let mut entries = fs::read_dir(dir).map_err(|e| failed("read", dir, &e))?;
    if entries.next().is_some() {
        return Err(CollectorError::new(
            Exit::Usage,
            format_args!("{} is not empty; init makes a new collector in an empty folder only", dir.display()),
        ));
    }
    for name in ["ca", "server", "keys", "lock", "clients", "index"] {
        folder(&dir.join(name))?;
    }
    let (authority, ca) = Authority::create(name)?;
    write(&dir.join("ca/ca.pem"), &ca.cert, 0o644)?;
    write(&dir.join("ca/key.pem"), &ca.key, 0o600)?;
    let mut names: Vec<String> = hosts.to_vec();
    names.extend(["localhost", "127.0.0.1"].map(str::to_owned).into_iter().filter(|n| !hosts.contains(n)));
    let server = authority.server(&names, SERVER_TTL)?;
    write(&dir.join("server/cert.pem"), &server.cert, 0o644)?;
    write(&dir.join("server/key.pem"), &server.key, 0o600)?;
    let node = issue(&authority, &node, CLIENT_TTL, &dir.join(format!("clients/node-{name}")))?;
    let admin = issue(&authority, &pki::caller("admin", Role::Admin)?, CLIENT_TTL, &dir.join("clients/admin"))?;
    write(&dir.join(config::FILE_NAME), config::DEFAULT, 0o644)?;
    log(dir, name)?;
    let certificates = Config::read(&dir.join(config::FILE_NAME))?.certificates;
    let enrol = certificates.map_or_else(|| dir.join("enrol"), |c| c.dir);
    for about in [&server.about, &node, &admin] {
        orders::leave(&enrol, &Order::made(about, &tokens::whoever()))?;
    }
    sync(dir)
}

fn log(dir: &Path, name: &str) -> Result<()> {
    let random = HostId::random().map_err(|e| failed("name the log of", dir, &e))?.to_string();
    // Two collectors of one name must not have one origin.
    let origin = format!("guard-log/{name}/{}", random.get(..8).unwrap_or(&random));
    let log =
        |e: &dyn std::fmt::Display| CollectorError::new(Exit::Unavailable, format_args!("cannot make the log: {e}"));
    let signer = KeyFile::generate(&origin).map_err(|e| log(&e))?;
    keys::write_key(&dir.join("keys/log.skey"), &signer)?;
    let admin = KeyFile::generate(&origin.replacen("guard-log", "guard-admin", 1)).map_err(|e| log(&e))?;
    keys::write_key(&dir.join(ADMIN_KEY), &admin)?;
    write(&dir.join(ADMIN_VKEY), &format!("{}\n", admin.vkey()), 0o644)?;
    write(&dir.join("log.vkey"), &format!("{}\n", signer.vkey()), 0o644)?;
    let config = Config::read(&dir.join(config::FILE_NAME))?;
    Store::create(&config.store, &signer).map_err(|e| log(&e))
}

/// Makes a certificate; what became of putting it on record, in words.
pub fn client(dir: &Path, name: &str, role: Role, ttl: Duration, out: &Path) -> Result<String> {
    let caller = pki::caller(name, role)?;
    let taken: Option<PathBuf> =
        ["ca.pem", "cert.pem", "key.pem"].iter().map(|n| out.join(n)).find(|path| path.exists());
    if let Some(path) = taken {
        return Err(CollectorError::new(Exit::Usage, format_args!("{} exists already", path.display())));
    }
    let authority = Authority::read(&dir.join("ca/ca.pem"), &dir.join("ca/key.pem"))?;
    let config = dir.join(config::FILE_NAME);
    let certificates = Config::read(&config)?.certificates;
    let about = issue(&authority, &caller, ttl, out)?;
    let serial = &about.serial;
    let Some(certificates) = certificates else {
        return Ok(format!(
            "serial {serial}; not put on record, as {} has no table [certificates]: it can be revoked by its serial or name\n",
            config.display()
        ));
    };
    orders::leave(&certificates.dir, &Order::made(&about, &tokens::whoever()))?;
    Ok(format!("serial {serial}; the collector puts it on record within a second, or at its next start\n"))
}
