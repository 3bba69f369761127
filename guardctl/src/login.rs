//! `guardctl login` and `guardctl logout`: a certificate of the collector for somebody whom an OpenID Connect issuer knows.
//!
//! guardctl knows the collector and nothing of the issuer: the collector says where the person logs in, and exchanges the code that
//! the browser brings back. The private key is made here, never leaves this machine, and lies with its certificate in one file of
//! its owner's alone. It must not write the file before the certificate is there, and prints no code or key. Fails: a
//! [`CliError`] that says who refused, and what to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use guard_proto::v1::login_reply::Reply;
use guard_proto::v1::login_request::Request;
use guard_proto::v1::{LoggedIn, LoginBegin, LoginBegun, LoginFinish};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::args::LoginArgs;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::{Out, json_line, note};
use crate::text::escape_str;
use crate::time;
use callback::Wanted;

mod callback;
mod wire;

const FILE_MAX: u64 = 64 << 10;
/// Bits of a mode that let others than the owner at a file.
const OTHERS: u32 = 0o077;
const AGAIN: &str = "run `guardctl login`";

fn internal(error: impl std::fmt::Display) -> CliError {
    CliError::new(Exit::Internal, error)
}

/// So many random bytes, as text for an address.
fn random<const N: usize>() -> Result<String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| internal(format_args!("no random bytes: {e}")))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Runs `login`.
pub async fn run(args: &LoginArgs, config: &Config, out: &Out) -> Result<()> {
    if config.cert.is_some() || config.key.is_some() {
        let text = "the configuration names `cert` and `key`, so what a login brings would not be used";
        return Err(CliError::new(Exit::Config, text).hint("remove both from the configuration, then log in"));
    }
    let path = config.login_path()?;
    let key = KeyPair::generate().map_err(internal)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(internal)?.der().to_vec();
    let done = authorize(args, config, csr, out).await?;
    let pem = Zeroizing::new(format!("{}{}", key.serialize_pem(), done.certificate));
    if Facts::of(pem.as_bytes()).is_none_or(|facts| facts.public_key != key.subject_public_key_info()) {
        return Err(internal("the collector gave a certificate that is not for the key that was made here"));
    }
    write(&path, pem.as_bytes()).map_err(|e| unusable(&path, &e.to_string()))?;
    say(&done, out)
}

/// From the address that is shown to the certificate.
async fn authorize(args: &LoginArgs, config: &Config, csr: Vec<u8>, out: &Out) -> Result<LoggedIn> {
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await.map_err(|e| {
        CliError::new(Exit::Unavailable, format_args!("cannot listen on port {} of this machine: {e}", args.port))
    })?;
    let port = listener.local_addr().map_err(internal)?.port();
    let redirect_uri = format!("http://127.0.0.1:{port}/callback");
    let (state, code_verifier) = (random::<24>()?, random::<32>()?);
    let code_challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&code_verifier));
    let (begin_csr, begin_state, begin_uri) = (csr.clone(), state.clone(), redirect_uri.clone());
    let begin = LoginBegin { csr: begin_csr, redirect_uri: begin_uri, state: begin_state, code_challenge };
    let begun = match wire::ask(config, Request::Begin(begin)).await? {
        Reply::Begun(begun) => begun,
        Reply::Done(_) | Reply::Refused(_) => return Err(internal("the collector answered something else")),
    };
    show(&begun, out)?;
    if !args.no_browser {
        open(&begun.url);
    }
    let wanted = Wanted { state, issuer: begun.issuer };
    let code = tokio::time::timeout(args.wait, callback::code(listener, &wanted)).await.map_err(|_| {
        CliError::new(Exit::Unavailable, format_args!("no browser came back to {redirect_uri} in time"))
            .hint("on a remote machine use `--port PORT` and `ssh -L PORT:127.0.0.1:PORT`")
    })??;
    let finish = LoginFinish { csr, redirect_uri, code, code_verifier };
    match wire::ask(config, Request::Finish(finish)).await? {
        Reply::Done(done) => Ok(done),
        Reply::Begun(_) | Reply::Refused(_) => Err(internal("the collector answered something else")),
    }
}

/// On stderr: stdout is for what came of it.
fn show(begun: &LoginBegun, out: &Out) -> Result<()> {
    if out.is_json() {
        let line = json_line(&json!({"event": "browser", "issuer": begun.issuer, "url": begun.url}))?;
        note(line.trim_end());
    } else {
        note(&format!("log in at {} with a browser:\n\n  {}\n", escape_str(&begun.issuer), escape_str(&begun.url)));
    }
    Ok(())
}

/// On a desktop, by the desktop's own program; that there is none is no failure, since the address was printed.
fn open(url: &str) {
    let desktop =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    if desktop && url.starts_with("http") {
        let mut program = std::process::Command::new("xdg-open");
        let _ = program.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    }
}

fn say(done: &LoggedIn, out: &Out) -> Result<()> {
    let end = done.not_after_unix.saturating_mul(1_000_000_000);
    if out.is_json() {
        return out.json(
            &json!({"name": done.name, "role": done.role, "issuer": done.issuer, "not_after": time::rfc3339(end)}),
        );
    }
    let (name, role) = (escape_str(&done.name), escape_str(&done.role));
    out.print(&format!("logged in as {name} ({role}) until {} UTC\n", time::date_time(end)))
}

/// Runs `logout`.
pub fn logout(config: &Config, out: &Out) -> Result<()> {
    let path = config.login_path()?;
    let there = match fs::remove_file(&path) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(unusable(&path, &e.to_string())),
    };
    if out.is_json() {
        return out.json(&json!({"removed": there}));
    }
    out.print(if there {
        "the certificate and its key are removed from this machine\n"
    } else {
        "nobody is logged in\n"
    })
}

/// Key and certificate of the last login, in one PEM text.
pub fn pair(config: &Config) -> Result<Zeroizing<Vec<u8>>> {
    let path = config.login_path()?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = "no `cert` is configured, and nobody has logged in";
            return Err(CliError::new(Exit::Config, text).hint(format_args!(
                "{AGAIN}, or name `cert` and `key`; `guard-collector client` makes them for a person"
            )));
        }
        Err(e) => return Err(unusable(&path, &e.to_string())),
    };
    let mode = file.metadata().map_err(|e| unusable(&path, &e.to_string()))?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        let text = format!("its mode is {mode:04o}, so others than its owner may get at the key");
        return Err(unusable(&path, &text));
    }
    let mut pem = Zeroizing::new(Vec::new());
    file.take(FILE_MAX).read_to_end(&mut pem).map_err(|e| unusable(&path, &e.to_string()))?;
    let facts = Facts::of(&pem).ok_or_else(|| unusable(&path, "there is no certificate in it"))?;
    let now = time::now_ns() / 1_000_000_000;
    if facts.not_after <= now {
        let end = time::date_time(facts.not_after.saturating_mul(1_000_000_000));
        return Err(CliError::new(Exit::Denied, format_args!("the login ended at {end} UTC")).hint(AGAIN));
    }
    Ok(pem)
}

/// When a certificate ends or ended, in seconds since 1970; of the first one of a PEM text.
pub fn end(pem: &[u8]) -> Option<i64> {
    Facts::of(pem).map(|facts| facts.not_after)
}

/// What a certificate says.
#[derive(Debug)]
struct Facts {
    not_after: i64,
    public_key: Vec<u8>,
}

impl Facts {
    /// Of the first certificate of a PEM text.
    fn of(pem: &[u8]) -> Option<Self> {
        let found = Pem::iter_from_buffer(pem).filter_map(|p| p.ok()).find(|p| p.label == "CERTIFICATE")?;
        let (_, parsed) = X509Certificate::from_der(&found.contents).ok()?;
        let not_after = parsed.validity().not_after.timestamp();
        Some(Self { not_after, public_key: parsed.public_key().raw.to_vec() })
    }
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let next = path.with_extension(format!("next-{}", std::process::id()));
    let _ = fs::remove_file(&next);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(dir)?.sync_all()
}

fn unusable(path: &Path, why: &str) -> CliError {
    CliError::new(Exit::Config, format_args!("{}: {why}", path.display()))
        .hint(format_args!("it holds key and certificate of the last login; remove it and {AGAIN}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::date_time_ymd;

    use super::*;

    fn kept(year: i32) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().expect("folder");
        let config = Config { state: Some(dir.path().join("deep/state.json")), ..Config::default() };
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        let pem = format!("{}{}", key.serialize_pem(), params.self_signed(&key).expect("certificate").pem());
        write(&config.login_path().expect("a path"), pem.as_bytes()).expect("written");
        (dir, config)
    }

    #[test]
    fn what_a_login_brought_is_its_owners_alone() {
        let (_dir, config) = kept(4000);
        let path = config.login_path().expect("a path");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let facts = Facts::of(&pair(&config).expect("read")).expect("a certificate");
        assert!(facts.not_after > time::now_ns() / 1_000_000_000);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
        let error = pair(&config).expect_err("others may read it");
        assert!(error.kind == Exit::Config && error.message.contains("0644"), "{error}");
    }

    #[test]
    fn who_is_not_logged_in_any_more_is_told_how() {
        let (_dir, config) = kept(2001);
        let error = pair(&config).expect_err("ended");
        assert!(error.kind == Exit::Denied && error.message.contains("ended at 2001-01-01"), "{error}");
        assert_eq!(error.hint.as_deref(), Some(AGAIN));
        let out = Out::new(crate::output::Format::Json);
        logout(&config, &out).expect("removed");
        let error = pair(&config).expect_err("nobody");
        assert!(error.hint.is_some_and(|hint| hint.contains("guardctl login")), "{}", error.message);
        logout(&config, &out).expect("again");
    }
}
