//! Keeps the kernel's maps of sockets and addresses true: services make their sockets anew, interfaces and names change.
//!
//! Two threads of their own, because looking up files and names may take long. Fails: what cannot be looked up stays as it
//! was; a socket that is not found is not in the map and so is refused.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use guard_common::{FileKey, SocketFile};
use rustix::fs::{FileType, Mode, OFlags};

use crate::config::Config;
use crate::kernel::addresses;
use crate::kernel::load::{Kernel, KernelError};
use crate::network::{self, Addresses, Collector, NamedSocket, Rules};
use crate::node::Node;

/// How often files and interfaces are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the collector's name is looked up.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// What the maps hold.
#[derive(Debug)]
pub struct Reach {
    /// Rules by number.
    pub rules: Rules,
    host: String,
    collector: Mutex<Collector>,
    filled: Mutex<Filled>,
}

#[derive(Debug, Default)]
struct Filled {
    files: BTreeSet<SocketFile>,
    // As long as they are open, no other file can have their inode.
    open: Vec<OwnedFd>,
    addresses: Addresses,
}

impl Reach {
    /// Reads the configuration. Nothing is looked up that may take long.
    pub fn new(config: &Config) -> Result<Self, String> {
        let (host, port) = host_and_port(&config.collector.address)?;
        let mut collector = Collector { port, ..Collector::default() };
        collector.addresses.extend(host.parse::<IpAddr>());
        Ok(Self {
            rules: Rules::of(&config.profiles),
            host,
            collector: Mutex::new(collector),
            filled: Mutex::default(),
        })
    }

    /// Fills the maps for the first time, whatever an earlier daemon left in them.
    pub fn install(&self, config: &Config, kernel: &Kernel) -> Result<(), KernelError> {
        kernel.set_socket_names(&network::socket_names(&config.profiles))?;
        kernel.set_socket_files(&BTreeSet::new())?;
        let wanted = self.wanted(config, &addresses::local().unwrap_or_default());
        kernel.set_addresses(&wanted)?;
        self.filled.lock().unwrap_or_else(PoisonError::into_inner).addresses = wanted;
        self.look(config, kernel)
    }

    fn wanted(&self, config: &Config, local: &[IpAddr]) -> Addresses {
        let mut wanted = self.rules.addresses(&config.profiles, local);
        wanted.extend(self.collector.lock().unwrap_or_else(PoisonError::into_inner).entries(local));
        wanted
    }

    /// Looks at files and interfaces, and changes the maps where something has changed.
    fn look(&self, config: &Config, kernel: &Kernel) -> Result<(), KernelError> {
        let (files, open) = socket_files(config);
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        if files != filled.files {
            kernel.set_socket_files(&files)?;
            filled.files = files;
        }
        filled.open = open;
        let Ok(local) = addresses::local() else { return Ok(()) };
        let wanted = self.wanted(config, &local);
        if wanted != filled.addresses {
            kernel.set_addresses(&wanted)?;
            filled.addresses = wanted;
        }
        Ok(())
    }

    /// Adds the addresses that the collector's name has now. Those of before stay.
    fn resolve(&self) -> bool {
        let port = self.collector.lock().unwrap_or_else(PoisonError::into_inner).port;
        let Ok(found) = (self.host.as_str(), port).to_socket_addrs() else { return false };
        let found: Vec<IpAddr> = found.map(|a| a.ip()).collect();
        self.collector.lock().unwrap_or_else(PoisonError::into_inner).addresses.extend(&found);
        !found.is_empty()
    }
}

/// Starts the threads.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let looked = Arc::clone(node);
    thread::Builder::new().name("reach".into()).spawn(move || {
        loop {
            if let Err(error) = looked.reach.look(&looked.config, &looked.kernel) {
                tracing::error!(%error, "the maps of sockets and addresses could not be changed");
            }
            thread::sleep(LOOK_EVERY);
        }
    })?;
    let resolved = Arc::clone(node);
    thread::Builder::new().name("resolve".into()).spawn(move || {
        loop {
            let known = resolved.reach.resolve();
            if !known {
                tracing::debug!(host = resolved.reach.host, "the collector's name has no address now");
            }
            thread::sleep(if known { RESOLVE_EVERY } else { LOOK_EVERY });
        }
    })?;
    Ok(())
}

/// Of `https://host:port`.
fn host_and_port(address: &str) -> Result<(String, u16), String> {
    let wrong = || format!("`{address}` is no https://HOST:PORT");
    let uri: tonic::transport::Uri = address.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, uri.port_u16().unwrap_or(443)))
}

/// Files of the profiles' sockets as they are now.
fn socket_files(config: &Config) -> (BTreeSet<SocketFile>, Vec<OwnedFd>) {
    let (mut files, mut open) = (BTreeSet::new(), Vec::new());
    for (name, profile) in config.profiles.by_name() {
        for path in profile.unix_sockets.iter().filter_map(|s| match s {
            NamedSocket::File(path) => Some(path),
            NamedSocket::Abstract(_) => None,
        }) {
            let Ok((fd, key)) = socket_file(path) else { continue };
            let profile = network::profile_number(&name);
            files.insert(SocketFile { profile, reserved: 0, dev: key.dev, ino: key.ino });
            open.push(fd);
        }
    }
    (files, open)
}

/// A socket's file, kept open, with its identity.
pub fn socket_file(path: &Path) -> io::Result<(OwnedFd, FileKey)> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Socket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let key = file_key(&fd)?;
    Ok((fd, key))
}

/// Device and inode as the kernel programs see them: `fstat` tells another device on btrfs and overlayfs.
fn file_key(fd: &OwnedFd) -> io::Result<FileKey> {
    let missing = || io::Error::from(io::ErrorKind::InvalidData);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).ok_or_else(missing);
    let (ino, mount) = (value("ino:")?, value("mnt_id:")?);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next() == Some(mount)).then(|| words.nth(1)).flatten()
    });
    let (major, minor) = device.and_then(|d| d.split_once(':')).ok_or_else(missing)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| missing());
    Ok(FileKey { dev: number(major)? << 20 | number(minor)?, ino: number(ino)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_port_is_known() {
        assert_eq!(host_and_port("https://c.example:7443").unwrap(), ("c.example".into(), 7443));
        assert_eq!(host_and_port("https://[2001:db8::1]:1/").unwrap(), ("2001:db8::1".into(), 1));
        assert_eq!(host_and_port("https://c.example").unwrap().1, 443);
        assert!(host_and_port("https://").is_err());
    }

    #[test]
    fn only_sockets_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(socket_file(&path).is_err());
        std::fs::write(&path, "").unwrap();
        assert!(socket_file(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (_, key) = socket_file(&path).unwrap();
        assert_eq!(key.ino, std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap()));
    }
}
