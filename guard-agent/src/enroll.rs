//! `guard-agent enroll`: makes this node's key, gets its certificate, and puts both with the CA and the pins of the collector's log
//! where the configuration says.
//!
//! It must not replace a certificate that is there unless it is told to, nor pins that say something else, and looks at all of
//! that before it uses the token. Fails: what was there stays; the same command with the same token goes on where it stopped.

use std::fs;
use std::io::Read;
use std::path::Path;

use guard_log::frame;
use guard_log::note::Verifier;
use guard_proto::v1::Enrolled;

use crate::config::{CollectorConfig, Config, Pins};
use crate::exit::{Code, Failure, failed};
use crate::join::{self, Token};

/// Longest token, read from standard input.
const TOKEN_MAX: u64 = 4096;

fn refused(text: impl Into<String>) -> Failure {
    Failure { code: Code::Usage, text: text.into() }
}

/// Enrols.
pub fn run(path: &Path, address: &str, token: &str, again: bool) -> Result<String, Failure> {
    let config = Config::read(path).map_err(failed(Code::Config))?;
    let collector = &config.collector;
    let token = read_token(token)?;
    may_write(collector, path, again)?;
    for file in [&collector.ca, &collector.cert, &collector.key].into_iter().chain(&collector.pins) {
        make_folder(file)?;
    }
    let files = collector.files();
    // The daemon may just be renewing.
    let _alone = files.lock(true).map_err(failed(Code::Unavailable))?;
    let csr = files.request(true).map_err(failed(Code::Unavailable))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed(Code::Internal))?;
    let enrolled = runtime.block_on(join::enrol(address, &token, csr)).map_err(failed(Code::Unavailable))?;
    let pins = pins(collector, &enrolled)?;
    // The certificate comes last: until then the node is not enrolled.
    write(&collector.ca, &enrolled.ca)?;
    if let (Some(path), text) = (&collector.pins, pins) {
        write(path, &text)?;
    }
    let facts = files.install(&enrolled.certificate).map_err(failed(Code::Unavailable))?;
    Ok(format!(
        "{} is enrolled; its certificate (serial {}) ends at {} and is renewed by the daemon. Next: guard-agent check --config {}",
        token.name,
        facts.serial,
        facts.end,
        path.display()
    ))
}

fn read_token(text: &str) -> Result<Token, Failure> {
    let mut read = String::new();
    let text = match text {
        "-" => {
            let taken = std::io::stdin().take(TOKEN_MAX).read_to_string(&mut read);
            taken.map_err(|e| refused(format!("the token cannot be read: {e}")))?;
            read.as_str()
        }
        text => text,
    };
    text.parse().map_err(refused)
}

fn may_write(collector: &CollectorConfig, config: &Path, again: bool) -> Result<(), Failure> {
    if !again && let Ok(pair) = collector.files().read() {
        return Err(refused(format!(
            "this node is enrolled: {} (serial {}) ends at {} and is renewed by the daemon; --again replaces it",
            collector.cert.display(),
            pair.facts.serial,
            pair.facts.end
        )));
    }
    // Half of a pair: whose it is is not known here.
    if !again && let Some(there) = [&collector.cert, &collector.key].into_iter().find(|path| path.exists()) {
        return Err(refused(format!("{} is there already; --again replaces it", there.display())));
    }
    if collector.pins.is_none() && collector.log_vkey.is_none() {
        return Err(refused(format!(
            "{} names no place for the key of the collector's log, which this host must know: set pins = \
             \"/etc/guard/tls/pins.toml\" below [collector]",
            config.display()
        )));
    }
    Ok(())
}

/// The file of pins, unless the configuration pins another log.
fn pins(collector: &CollectorConfig, enrolled: &Enrolled) -> Result<String, Failure> {
    let other = |key: &str, pinned: &str, shown: &str| {
        refused(format!(
            "{key} of the configuration is {pinned}, the collector's is {shown}: it is another log, or its key was rotated; \
             put that right first. Nothing was written; the token is good for this host still"
        ))
    };
    for (key, pinned, shown) in [
        ("collector.log_vkey", &collector.log_vkey, &enrolled.log_vkey),
        ("collector.admin_vkey", &collector.admin_vkey, &enrolled.admin_vkey),
    ] {
        if !shown.is_empty() {
            Verifier::parse(shown)
                .map_err(|e| Failure { code: Code::Unavailable, text: format!("the collector's {key}: {e}") })?;
        }
        if let Some(pinned) = pinned
            && pinned != shown
        {
            return Err(other(key, pinned, shown));
        }
    }
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let pins = Pins { log_vkey: some(&enrolled.log_vkey), admin_vkey: some(&enrolled.admin_vkey) };
    toml::to_string(&pins).map_err(failed(Code::Internal))
}

fn make_folder(file: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| Failure { code: Code::Denied, text: format!("{}: {e}", folder.display()) })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    frame::replace(path, text.as_bytes())
        .map_err(|e| Failure { code: Code::Denied, text: format!("{}: {e}", path.display()) })
}
