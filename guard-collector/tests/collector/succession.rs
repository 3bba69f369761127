//! The way back from an older copy: refused by name, succeeded, and every record there once.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use guard_log::note::Verifier;
use guard_log::record::{Kind, Record};
use guard_log::signer::KeyFile;
use guard_log::verify::{AuditOptions, AuditReport, Blobs, DirOptions, Folder, LogDir, Said, Severity, State, audit};
use guard_proto::v1::{GetBlobRequest, StatusRequest};
use sha2::{Digest, Sha256};

use crate::daemon::{Daemon, blob_of};
use crate::world::{World, command};

fn vkey(world: &World, name: &str) -> Verifier {
    let text = std::fs::read_to_string(world.path("c").join(name)).expect("key");
    Verifier::parse(text.trim()).expect("key")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("entry");
        match entry.file_type().expect("type").is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied")),
        }
    }
}

fn said(record: &Record) -> Option<Said> {
    blob_of(record)?.try_into().ok().map(Said::Names)
}

/// What of the collector's folder comes back from the backup.
#[derive(Clone, Copy, PartialEq)]
enum Restored {
    Whole,
    /// The log's folder alone, as documented: the lock stays.
    Data,
    /// The same, of a log whose key was rotated before.
    DataOfRotated,
    /// The same, of a log whose key was rotated after the copy was made.
    DataBeforeRotation,
}

/// Two hosts whose records the log held, of which the copy that was put back lacks some.
struct Lost {
    world: World,
    hosts: [Daemon; 2],
    old: Verifier,
    /// Of what a lost record keeps outside the log.
    blob: Vec<u8>,
}

impl Lost {
    async fn new(restored: Restored) -> Lost {
        let mut world = World::new();
        let (old, admin) = (vkey(&world, "log.vkey"), vkey(&world, "admin.vkey"));
        if restored == Restored::DataOfRotated {
            // The pin stays at the first key: hosts come to the second, and from there to the successor.
            world.stop();
            for what in ["rotate", "retire"] {
                let done = command(&["key", what, "--config", world.config().to_str().expect("UTF-8")]);
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
            world.start();
        }
        let hosts =
            [Daemon::new("node-box", Some(old.clone()), Some(admin.clone())), Daemon::new("box2", None, Some(admin))];
        for host in &hosts {
            host.ship_more(&world, 40).await.expect("shipped");
        }
        world.stop();
        copy(&world.path("c"), &world.path("backup"));
        world.start();
        let blob = hosts[0].fill_with_blob();
        for (host, count) in hosts.iter().zip([300, 25]) {
            host.ship_more(&world, count).await.expect("shipped");
        }
        // Until what was acknowledged last is public, and both have seen it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for host in &hosts {
            host.ship_more(&world, 1).await.expect("shipped");
        }
        world.stop();
        if restored == Restored::DataBeforeRotation {
            for what in ["rotate", "retire"] {
                let done = command(&["key", what, "--config", world.config().to_str().expect("UTF-8")]);
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
            world.start();
            for host in &hosts {
                host.ship_more(&world, 1).await.expect("followed");
                assert_eq!(host.followed().len(), 1);
            }
            world.stop();
        }
        let part = if restored == Restored::Whole { "" } else { "data" };
        std::fs::remove_dir_all(world.path("c").join(part)).expect("lost");
        copy(&world.path("backup").join(part), &world.path("c").join(part));
        Lost { world, hosts, old, blob }
    }

    fn succeed(&self, more: &[&str]) -> Output {
        let config = self.world.config();
        let mut args = vec!["succeed", "--config", config.to_str().expect("UTF-8")];
        args.extend(more);
        command(&args)
    }

    fn admin_key(&self) -> String {
        self.world.path("backup/admin.skey").to_str().expect("UTF-8").to_owned()
    }

    fn audit(&self, key: &Verifier) -> Result<AuditReport, guard_log::verify::VerifyError> {
        let folder = Folder::open(&self.world.path("c/data/log")).expect("folder");
        let options = AuditOptions { previous: None, admin: Some(vkey(&self.world, "admin.vkey")) };
        audit(&folder, key, &options, &mut |_, _| {})
    }

    /// All is there once, and the log says what it is.
    async fn assert_whole(mut self) {
        self.world.start();
        for host in &mut self.hosts {
            host.ship_more(&self.world, 3).await.expect("believed");
            let followed: Vec<_> = host.followed().into_iter().filter(|f| f.what == "succeeded").collect();
            assert!(followed.len() == 1, "{followed:?}");
            let all = host.followed().len();
            assert!(followed[0].detail.contains("this host had seen size"), "{}", followed[0].detail);
            assert!(!host.refused().contains(&"lost_records".to_owned()));
            // Once more, and after a restart: nothing is new.
            host.ship_more(&self.world, 1).await.expect("believed");
            host.restart();
            host.ship_more(&self.world, 1).await.expect("believed");
            assert_eq!(host.followed().len(), all);
        }
        for host in &self.hosts {
            host.assert_logged_once(&self.world).await;
        }
        let records = self.world.records().await;
        assert_eq!(records.iter().filter(|r| r.header().kind == Kind::LOG_SUCCEEDED).count(), 1);
        let status = self.world.control("admin").await.status(StatusRequest {}).await.expect("status").into_inner();
        assert_ne!(status.origin, self.old.name());
        // What a record keeps outside the log came again with it.
        let get = GetBlobRequest { sha256: self.blob.clone() };
        let kept = self.world.control("admin").await.get_blob(get).await.expect("the blob").into_inner();
        assert_eq!(Sha256::digest(&kept.content).as_slice(), self.blob);
        self.world.stop();
        let new = vkey(&self.world, "log.vkey");
        assert_eq!(status.log_vkey, new.vkey());
        // Who trusts the old key comes to the new one, offline.
        for key in [&self.old, &new] {
            let report = self.audit(key).expect("audited");
            assert!(report.is_ok(), "{:?}", report.findings);
            let said = report.findings.iter().find(|f| f.what == "successor").expect("said");
            assert!(said.severity == Severity::Information && said.detail.contains(self.old.name()), "{said}");
        }
        let blobs = Blobs { max: 1 << 20, said };
        let lock = Some(self.world.path("c/lock/log"));
        let options = DirOptions { key: Some(&new), admin: None, previous: None, lock, blobs };
        let report = LogDir::open(&self.world.path("c/data")).expect("log").audit(&options);
        let wrong: Vec<_> = report.parts.iter().filter(|part| part.state == State::Wrong).collect();
        assert!(wrong.is_empty(), "{wrong:?} {:?}", report.findings);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_was_put_back_whole_is_refused_by_its_hosts_and_goes_on_as_a_successor() {
    let mut lost = Lost::new(Restored::Whole).await;
    // Its lock came back with it, so it does not know.
    lost.world.start();
    for host in &lost.hosts {
        let (before, end) = (host.journal.state().acked_next_seq, host.ship_more(&lost.world, 2).await);
        assert!(end.as_ref().is_err_and(|end| end.contains("not believed (rollback)")), "{end:?}");
        assert_eq!(host.refused(), ["rollback"]);
        assert_eq!(host.journal.state().acked_next_seq, before, "nothing counts as delivered");
    }
    lost.world.stop();
    let made = lost.succeed(&["--admin-key", &lost.admin_key()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(said.contains("succeeds") && said.contains(vkey(&lost.world, "log.vkey").vkey().as_str()), "{said}");
    lost.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_put_back_is_refused_by_its_lock_and_goes_on_as_a_successor() {
    let lost = Lost::new(Restored::DataOfRotated).await;
    let config = lost.world.config();
    let serve = command(&["serve", "--config", config.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&serve.stderr).into_owned();
    assert!(serve.status.code() == Some(70) && said.contains("older copy of the folder"), "{said}");
    assert!(said.contains("guard-collector succeed"), "{said}");
    // Not without the admin key.
    assert_eq!(lost.succeed(&[]).status.code(), Some(64));
    let made = lost.succeed(&["--admin-key", &lost.admin_key()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The lock knew how far the old log came.
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(said.contains("the newest that is known of is of size 4") || said.contains("of size 3"), "{said}");
    lost.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_before_a_rotation_goes_on_too_if_its_key_is_named() {
    let lost = Lost::new(Restored::DataBeforeRotation).await;
    let refused = lost.succeed(&["--admin-key", &lost.admin_key()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(78) && said.contains("--log-vkey"), "{said}");
    let made = lost.succeed(&["--admin-key", &lost.admin_key(), "--log-vkey", &lost.old.vkey()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    lost.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_succession_that_was_cut_short_anywhere_is_finished_by_the_next() {
    let lost = Lost::new(Restored::Data).await;
    let config = lost.world.config();
    let admin = lost.admin_key();
    let (mut cut, mut refused, mut done) = (0, 0, false);
    for round in 0..30_u64 {
        let mut succeed = std::process::Command::new(crate::world::BINARY);
        succeed.args(["succeed", "--config"]).arg(&config).args(["--admin-key", &admin]);
        let mut child = succeed.stdout(std::process::Stdio::null()).spawn().expect("starts");
        // From the first moment to well after the last step.
        std::thread::sleep(Duration::from_millis(2 + round * 3));
        let _ = child.kill();
        done = child.wait().expect("ended").success();
        if done {
            break;
        }
        cut += 1;
        // Until it is done, nothing opens what hosts could take for the log.
        let opened = command(&["reindex", "--config", config.to_str().expect("UTF-8")]);
        done = opened.status.success();
        if done {
            break;
        }
        refused += 1;
    }
    assert!(refused > 3, "{cut} cut, {refused} refused: the test shows nothing");
    if !done {
        let made = lost.succeed(&["--admin-key", &admin]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    assert!(!lost.world.path("c/keys/log.skey.succession").exists());
    lost.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_another_key_signed_is_refused_and_recorded() {
    let mut lost = Lost::new(Restored::Data).await;
    let other = KeyFile::generate(vkey(&lost.world, "admin.vkey").name()).expect("key");
    let path = lost.world.path("other.skey");
    guard_collector::keys::write_key(&path, &other).expect("written");
    let made = lost.succeed(&["--admin-key", path.to_str().expect("UTF-8")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    lost.world.start();
    for host in &lost.hosts {
        let before = host.journal.state();
        let end = host.ship_more(&lost.world, 1).await.expect_err("not believed");
        assert!(end.contains("(successor)") && end.contains("admin key did not sign"), "{end}");
        assert_eq!(host.refused(), ["successor"]);
        let now = host.journal.state();
        assert_eq!((now.acked_next_seq, now.first_seq), (before.acked_next_seq, before.first_seq));
        assert!(host.followed().is_empty());
    }
    // Nor by a host that knows no admin key at all.
    let mut without = Daemon::new("node-box", Some(lost.old.clone()), None);
    without.host = lost.hosts[0].host;
    let end = without.ship(&lost.world).await.expect_err("not believed");
    assert!(end.contains("collector.admin_vkey"), "{end}");
    // Neither does an auditor.
    assert!(lost.audit(&lost.old).is_err());
}
