//! Where a session's socket lies: a folder of the host for each session, which the session sees as a mount of its own.
//!
//! The folder outlives the daemon, and the mount shows what is in it: the next daemon binds a new socket under the same name. On
//! the host only root reaches it. It must not accept anybody. Fails: with the step; a session does not start without its
//! socket, one of an earlier daemon goes on without.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use guard_common::FileKey;
use guard_log::record::SessionId;

use crate::kernel::bind;
use crate::reach;

/// Folders of all sessions, for root alone.
const FOLDERS: &str = "/run/guard/inside";
/// What the session sees.
const NAME: &str = "socket";

/// Where a session finds its own.
pub fn place() -> PathBuf {
    Path::new(guard_proto::SESSION_SOCKET).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A socket that listens.
pub struct Door {
    /// Connections come from here.
    pub listener: UnixListener,
    /// The socket's file, as the kernel programs see it.
    pub key: FileKey,
    folder: PathBuf,
}

impl Door {
    /// Binds a session's socket beside the one that may be there: nobody finds it yet.
    pub fn bind(session: SessionId) -> io::Result<Self> {
        fs::create_dir_all(place())?;
        Self::bind_below(Path::new(FOLDERS), session)
    }

    fn bind_below(folders: &Path, session: SessionId) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(folders)?;
        fs::set_permissions(folders, Permissions::from_mode(0o700))?;
        let folder = folders.join(session.to_string());
        // The folder stays the same one: running sessions have it mounted.
        match DirBuilder::new().mode(0o755).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(&folder, Permissions::from_mode(0o755))?,
        }
        let next = folder.join("next");
        let _ = fs::remove_file(&next);
        let listener = UnixListener::bind(&next)?;
        fs::set_permissions(&next, Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        let (_, key) = reach::socket_file(&next)?;
        Ok(Self { listener, key, folder })
    }

    /// Puts it where the session looks, once the kernel knows it.
    pub fn open(&self) -> io::Result<()> {
        fs::rename(self.folder.join("next"), self.folder.join(NAME))
    }

    /// The folder as a mount for the session's namespace.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        bind::sealed(&self.folder)
    }
}

/// Removes the folder of a session that is over.
pub fn remove(session: SessionId) {
    let _ = fs::remove_dir_all(Path::new(FOLDERS).join(session.to_string()));
}

/// Removes the folders of all sessions but these: what earlier daemons have left.
pub fn keep_only(sessions: &[String]) {
    let Ok(entries) = fs::read_dir(FOLDERS) else { return };
    for entry in entries.flatten() {
        if !sessions.iter().any(|session| entry.file_name().to_str() == Some(session)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_next_daemon_takes_the_place_of_the_one_before_in_the_same_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folders = dir.path().join("inside");
        let id = SessionId([7; 16]);
        let first = Door::bind_below(&folders, id).unwrap();
        let socket = first.folder.join(NAME);
        assert!(UnixStream::connect(&socket).is_err(), "not before it is opened");
        first.open().unwrap();
        let _peer = UnixStream::connect(&socket).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        assert_eq!(first.key.ino, inode(&socket));
        let before = inode(&first.folder);
        let second = Door::bind_below(&folders, id).unwrap();
        assert_ne!(second.key, first.key);
        second.open().unwrap();
        assert_eq!((inode(&second.folder), inode(&socket)), (before, second.key.ino));
        assert_eq!(fs::metadata(&folders).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    }
}
