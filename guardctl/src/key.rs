//! `guardctl key`: the key that signs a reviewer's decisions, in a file of its owner's alone.
//!
//! It must not print or overwrite a secret, and does not use a file that others may read. A passphrase, an agent and hardware
//! tokens are not supported. Fails: a [`CliError`] that names the file and what to do.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use guard_policy::decision::ReviewSigner;
use guard_policy::roles;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::KeyCommand;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::text::escape_str;

const FILE_MAX: u64 = 1024;
/// Bits of a mode that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// Runs a subcommand.
pub fn run(command: &KeyCommand, config: &Config, out: &Out) -> Result<()> {
    let path = config.review_key_path()?;
    let (signer, args) = match command {
        KeyCommand::New(args) => (create(&path)?, args),
        KeyCommand::Show(args) => {
            let none = || {
                CliError::new(Exit::No, format_args!("there is no key in {}", path.display()))
                    .hint("make one with `guardctl key new`")
            };
            (load(&path)?.ok_or_else(none)?, args)
        }
    };
    let name = args.name.clone().or_else(|| env::var("USER").ok()).unwrap_or_else(|| "NAME".to_owned());
    let (key, id) = (signer.public().text(), signer.public().id());
    if out.is_json() {
        return out
            .json(&json!({"file": path.display().to_string(), "name": name, "key": key, "key_id": hex::encode(id)}));
    }
    out.print(&format!(
        "key {} in {}\nan admin puts this under `keys` into the role file of the collector and of every host:\n\n  {}:\n  - \
         {{key: \"{key}\"}}\n\nthe name has to be the one that `guardctl whoami` shows\n",
        roles::short(&id),
        escape_str(&path.display().to_string()),
        escape_str(&name)
    ))
}

/// The caller's key, if there is a file.
pub fn of(config: &Config) -> Result<Option<ReviewSigner>> {
    load(&config.review_key_path()?)
}

fn create(path: &Path) -> Result<ReviewSigner> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())
        .map_err(|e| CliError::new(Exit::Internal, format_args!("no random bytes for a key: {e}")))?;
    let signer = ReviewSigner::from_seed(&seed);
    write(path, signer.secret().as_bytes()).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => CliError::new(Exit::No, format_args!("{} is there already", path.display()))
            .hint("`guardctl key show` prints its line; move the file away to make another key"),
        _ => unusable(path, &e.to_string()),
    })?;
    Ok(signer)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

fn load(path: &Path) -> Result<Option<ReviewSigner>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable(path, &e.to_string())),
    };
    let meta = file.metadata().map_err(|e| unusable(path, &e.to_string()))?;
    if !meta.is_file() {
        return Err(unusable(path, "it is not a regular file"));
    }
    let mode = meta.mode() & 0o7777;
    if mode & OTHERS != 0 {
        let text = format!("its mode is {mode:04o}, so others than its owner may get at the key");
        return Err(unusable(path, &text).hint("`chmod 600` it, and make a new key if somebody has"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| unusable(path, &e.to_string()))?;
    ReviewSigner::parse(&text).map(Some).map_err(|why| unusable(path, &why))
}

fn unusable(path: &Path, why: &str) -> CliError {
    CliError::new(Exit::Config, format_args!("key file {}: {why}", path.display()))
        .hint("it signs the caller's decisions; `guardctl key new` makes one")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("deep/review.key");
        assert!(load(&path).expect("none").is_none());
        let made = create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).expect("reads").expect("there").public(), made.public());
        assert_eq!(create(&path).expect_err("not again").kind, Exit::No);
        assert_eq!(load(&path).expect("kept").expect("there").public(), made.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        let error = load(&path).expect_err("others may read it");
        assert!(error.message.contains("0640") && error.kind == Exit::Config, "{}", error.message);
    }

    #[test]
    fn a_file_without_a_key_is_not_taken() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("review.key");
        write(&path, b"ed25519-secret:AAAA\n").expect("written");
        assert!(load(&path).expect_err("short").message.contains("32 bytes"));
    }
}
