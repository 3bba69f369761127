//! This node's certificate and key: reading them as a pair, making a new key, putting a new pair in place.
//!
//! They are two files, so a change of both is never whole at once. The certificate is the point of no return: the new key is
//! written beside the old one (`KEY.next`) and durable before a certificate for it is asked for; the certificate is renamed into
//! its place, then the key. Whoever reads takes the key that belongs to the certificate, so that a crash anywhere leaves a pair.
//! A private key never leaves its file. Fails: an error that names the file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guard_log::frame;
use guard_proto::CLOCK_SKEW_SECONDS;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

const FILE_MAX: u64 = 64 << 10;

/// Where they are.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM file of the certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// A certificate with its key, as PEM.
pub struct Pair {
    /// The certificate.
    pub cert: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// What is in it.
    pub facts: Facts,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// In lower-case hexadecimal digits.
    pub serial: String,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Its end.
    pub not_after: i64,
    /// The same for people.
    pub end: String,
    /// SubjectPublicKeyInfo.
    public_key: Vec<u8>,
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

impl Facts {
    /// Of a certificate as PEM.
    pub fn of(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(pem).map_err(|_| "it is no certificate in PEM form".to_owned())?;
        let (_, parsed) = X509Certificate::from_der(&pem.contents).map_err(|e| format!("unreadable: {e}"))?;
        let serial = parsed.raw_serial();
        Ok(Self {
            serial: hex::encode(serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial)),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            end: parsed.validity().not_after.to_string(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// How long it was made for.
    pub fn lifetime(&self) -> i64 {
        self.not_after.saturating_sub(self.not_before.saturating_add(CLOCK_SKEW_SECONDS)).max(1)
    }

    /// When it is to be renewed: two thirds are over.
    pub fn renew_at(&self) -> i64 {
        self.not_after.saturating_sub(self.lifetime() / 3)
    }

    /// When somebody has to be told that it was not: a quarter is left.
    pub fn tell_at(&self) -> i64 {
        self.not_after.saturating_sub(self.lifetime() / 4)
    }
}

fn next(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn at(path: &Path) -> impl Fn(io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}

fn belongs(key: &[u8], facts: &Facts) -> bool {
    let key = std::str::from_utf8(key).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
    key.is_some_and(|key| key.subject_public_key_info() == facts.public_key)
}

impl Files {
    /// Reads both: of the two keys that may be there, the one that belongs to the certificate.
    pub fn read(&self) -> Result<Pair, String> {
        let cert = frame::read_bounded(&self.cert, FILE_MAX).map_err(at(&self.cert))?;
        let facts = Facts::of(&cert).map_err(|e| format!("{}: {e}", self.cert.display()))?;
        let key = frame::read_bounded(&self.key, FILE_MAX);
        if let Ok(other) = frame::read_bounded(&next(&self.key), FILE_MAX)
            && belongs(&other, &facts)
        {
            return Ok(Pair { cert, key: other, facts });
        }
        let key = key.map_err(at(&self.key))?;
        if !belongs(&key, &facts) {
            return Err(format!("{} is not the key of {}", self.key.display(), self.cert.display()));
        }
        Ok(Pair { cert, key, facts })
    }

    /// Keeps others from asking for a certificate at the same time: daemon and `enroll` write the same files. `wait` for
    /// one that is at it, or be refused.
    pub fn lock(&self, wait: bool) -> Result<fs::File, String> {
        let mut path = self.key.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(at(&path))?;
        if wait {
            file.lock().map_err(at(&path))?;
        } else {
            file.try_lock().map_err(|_| "this node is just being enrolled".to_owned())?;
        }
        Ok(file)
    }

    /// Completes a change that a crash cut short.
    pub fn settle(&self) -> Result<(), String> {
        let (Ok(cert), Ok(other)) =
            (frame::read_bounded(&self.cert, FILE_MAX), frame::read_bounded(&next(&self.key), FILE_MAX))
        else {
            return Ok(());
        };
        match Facts::of(&cert) {
            Ok(facts) if belongs(&other, &facts) => self.promote(),
            _ => Ok(()),
        }
    }

    fn promote(&self) -> Result<(), String> {
        let other = next(&self.key);
        fs::rename(&other, &self.key).map_err(at(&other))?;
        sync(&self.key)
    }

    /// Makes a key for the next certificate, durable beside the one in use: the signing request for it. With `again` the key
    /// that an earlier try left is taken.
    pub fn request(&self, again: bool) -> Result<Vec<u8>, String> {
        self.settle()?;
        let path = next(&self.key);
        let left = if again { frame::read_text(&path, FILE_MAX).ok() } else { None };
        let key = match left.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(|e| format!("cannot make a key: {e}"))?;
                write_key(&path, &key.serialize_pem()).map_err(at(&path))?;
                key
            }
        };
        let params = CertificateParams::new(vec![]).map_err(|e| format!("cannot make a signing request: {e}"))?;
        let csr = params.serialize_request(&key).map_err(|e| format!("cannot make a signing request: {e}"))?;
        Ok(csr.der().to_vec())
    }

    /// Puts the certificate for the key of [`Self::request`] in place, with that key.
    pub fn install(&self, cert: &str) -> Result<Facts, String> {
        let facts = Facts::of(cert.as_bytes()).map_err(|e| format!("the certificate that came: {e}"))?;
        let path = next(&self.key);
        if !belongs(&frame::read_bounded(&path, FILE_MAX).map_err(at(&path))?, &facts) {
            return Err("the certificate that came is not for the key that was asked for".to_owned());
        }
        if facts.not_after <= now() {
            return Err(format!("the certificate that came ended at {}: look at this host's clock", facts.end));
        }
        frame::replace(&self.cert, cert.as_bytes()).map_err(at(&self.cert))?;
        self.promote()?;
        Ok(facts)
    }
}

fn sync(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(at(folder))
}

/// For its owner alone, durably, whole or not at all.
fn write_key(path: &Path, pem: &str) -> io::Result<()> {
    let mut half = path.as_os_str().to_owned();
    half.push(".half");
    let half = PathBuf::from(half);
    match fs::remove_file(&half) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a CA would, but signed by itself.
    fn certificate(csr_of: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec![]).expect("params");
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        params.self_signed(csr_of).expect("signed").pem()
    }

    fn key(path: &Path) -> KeyPair {
        KeyPair::from_pem(&fs::read_to_string(path).expect("key")).expect("key")
    }

    #[test]
    fn a_crash_anywhere_leaves_a_pair() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("folder");
        let files = Files { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        files.request(false).expect("asked");
        let first = certificate(&key(&next(&files.key)));
        files.install(&first).expect("put in place");
        assert_eq!(fs::metadata(&files.key).expect("there").permissions().mode() & 0o777, 0o600);
        // Asked for, and no answer.
        files.request(false).expect("asked");
        assert_eq!(files.read().expect("a pair").cert, first.as_bytes());
        let left = fs::read(next(&files.key)).expect("left");
        files.request(true).expect("asked");
        assert_eq!(fs::read(next(&files.key)).expect("left"), left, "the same key asks again");
        // The certificate in place, the key not yet.
        let second = certificate(&key(&next(&files.key)));
        fs::write(&files.cert, &second).expect("written");
        let pair = files.read().expect("a pair");
        assert_eq!((pair.cert.as_slice(), pair.key.as_slice()), (second.as_bytes(), left.as_slice()));
        files.settle().expect("settled");
        assert_eq!(fs::read(&files.key).expect("key"), left);
        assert!(!next(&files.key).exists());
        // Another one's certificate is not put in place.
        files.request(false).expect("asked");
        assert!(files.install(&first).is_err());
        assert_eq!(files.read().expect("a pair").cert, second.as_bytes());
        fs::write(&files.cert, &first).expect("written");
        assert!(files.read().err().expect("no pair").contains("is not the key of"));
    }

    #[test]
    fn one_asks_at_a_time() {
        let dir = tempfile::tempdir().expect("folder");
        let files = Files { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let held = files.lock(true).expect("free");
        assert!(files.lock(false).is_err_and(|why| why.contains("enrolled")));
        drop(held);
        files.lock(false).expect("free again");
    }

    #[test]
    fn times_of_a_certificate_count_from_its_making() {
        let (not_before, not_after) = (10_000 - CLOCK_SKEW_SECONDS, 10_000 + 1200);
        let (serial, end, public_key) = (String::new(), String::new(), vec![]);
        let facts = Facts { serial, not_before, not_after, end, public_key };
        assert_eq!((facts.lifetime(), facts.renew_at(), facts.tell_at()), (1200, 10_800, 10_900));
    }
}
