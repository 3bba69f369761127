//! The log's key is followed by another: who trusts the old one comes to the new one, and nobody else leads there.

use std::time::Duration;

use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::verify::{AuditOptions, Folder, audit};
use guard_proto::v1::*;

use crate::daemon::Daemon;
use crate::world::{World, command};

fn newest(world: &World) -> Verifier {
    let text = std::fs::read_to_string(world.path("c/log.vkey")).expect("key");
    Verifier::parse(text.trim()).expect("key")
}

fn key_command(world: &World, what: &str) -> std::process::Output {
    command(&["key", what, "--config", world.config().to_str().expect("UTF-8")])
}

fn done(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn checkpoint(world: &World) -> Vec<u8> {
    std::fs::read(world.path("c/data/log/checkpoint")).expect("checkpoint")
}

/// Signed by each of these keys, and not by those.
fn assert_signed(world: &World, by: &[&Verifier], not_by: &[&Verifier]) {
    let note = checkpoint(world);
    by.iter().for_each(|key| drop(Checkpoint::open(&note, key).expect("signed")));
    not_by.iter().for_each(|key| drop(Checkpoint::open(&note, key).expect_err("not signed")));
}

fn assert_verifies(world: &World, key: &Verifier) {
    let folder = Folder::open(&world.path("c/data/log")).expect("folder");
    let report = audit(&folder, key, &AuditOptions::default(), &mut |_, _| {}).expect("audited");
    assert!(report.is_ok(), "{:?}", report.findings);
    assert!(report.findings.iter().any(|f| f.what == "key_rotated"), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_follow_a_rotation_and_one_that_was_away_follows_it_afterwards() {
    let mut world = World::new();
    let old = newest(&world);
    let mut pinned = Daemon::new("node-box", Some(old.clone()), None);
    let away = Daemon::new("box2", None, None);
    for host in [&pinned, &away] {
        host.ship_more(&world, 5).await.expect("shipped");
    }
    // Not while it runs.
    assert!(!key_command(&world, "rotate").status.success());
    world.stop();
    assert_eq!(key_command(&world, "retire").status.code(), Some(64));
    let said = done(&key_command(&world, "rotate"));
    let new = newest(&world);
    assert!(new != old && new.name() == old.name() && said.contains(&new.vkey()), "{said}");
    assert_signed(&world, &[&old, &new], &[]);
    assert_eq!(key_command(&world, "rotate").status.code(), Some(64), "one after the other");
    world.start();
    let status = world.control("admin").await.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.signing_vkeys, [old.vkey(), new.vkey()]);
    pinned.ship_more(&world, 5).await.expect("followed");
    let followed = pinned.followed();
    assert!(followed.len() == 1 && followed[0].what == "rotated", "{followed:?}");
    assert_eq!((followed[0].old_vkey.clone(), followed[0].new_vkey.clone()), (old.vkey(), new.vkey()));
    world.stop();
    let said = done(&key_command(&world, "retire"));
    assert!(said.contains("is ended"), "{said}");
    assert_signed(&world, &[&new], &[]);
    world.start();
    // The one that followed goes on, after a restart too, although its configuration still names the old key.
    pinned.ship_more(&world, 5).await.expect("goes on");
    pinned.restart();
    pinned.ship_more(&world, 5).await.expect("goes on");
    assert_eq!(pinned.followed().len(), 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_signed(&world, &[&new], &[&old]);
    // The one that was away for all of it.
    away.ship_more(&world, 5).await.expect("followed");
    assert_eq!(away.followed().len(), 1);
    for host in [&pinned, &away] {
        host.assert_logged_once(&world).await;
        assert!(host.refused().is_empty());
    }
    world.stop();
    for key in [&old, &new] {
        assert_verifies(&world, key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_key_is_not_ended_while_the_witness_policy_names_it() {
    let world = World::stopped();
    let old = newest(&world);
    let policy = |key: &Verifier| {
        let witness =
            "witness w remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2 https://127.0.0.1:1";
        std::fs::write(world.path("c/witnesses"), format!("log {}\n{witness}\nquorum w\n", key.vkey()))
            .expect("written");
    };
    policy(&old);
    world.edit_config("[review]", "[witness]\npolicy = \"witnesses\"\n\n[review]");
    done(&key_command(&world, "rotate"));
    let refused = key_command(&world, "retire");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(78) && said.contains(&newest(&world).vkey()), "{said}");
    policy(&newest(&world));
    done(&key_command(&world, "retire"));
    // With the policy of the new key it starts.
    let mut world = world;
    world.start();
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_the_old_key_did_not_sign_is_refused_and_recorded() {
    let mut world = World::new();
    let old = newest(&world);
    let host = Daemon::new("node-box", Some(old.clone()), None);
    host.ship_more(&world, 5).await.expect("shipped");
    world.stop();
    done(&key_command(&world, "rotate"));
    done(&key_command(&world, "retire"));
    // Whoever has the log and its new key, but never had the old one: the receipt bears no signature of the old key.
    let path = world.path("c/data/log/changes");
    let right = std::fs::read_to_string(&path).expect("changes");
    let line = right.lines().find(|line| line.starts_with('\u{2014}')).expect("a line").to_owned();
    let forged = right.replacen(&format!("{line}\n"), "", 1);
    let honest = || Daemon::new("box2", Some(old.clone()), None);
    let welcome = |receipt: &str| ShipWelcome {
        checkpoint: checkpoint(&world),
        changes: vec![LogChange { receipt: receipt.as_bytes().to_vec(), ..LogChange::default() }],
        ..ShipWelcome::default()
    };
    let size = Checkpoint::open_unsigned(&checkpoint(&world)).expect("head").size;
    for (receipt, expected) in [(forged.as_str(), "not signed by"), ("nonsense\n", "does not hold")] {
        let honest = honest();
        let why = honest.seen.welcome(&welcome(receipt)).expect_err("refused");
        let record = why.record.expect("recorded");
        assert!(record.what == "rotation" && record.detail.contains(expected), "{record:?}");
        assert_eq!(honest.seen.size(), 0);
    }
    // The receipt is right and its record is in another log: it must be in the one that is shown.
    let why = honest().seen.welcome(&welcome(&right)).expect_err("refused");
    assert!(
        why.record.as_ref().is_some_and(|r| r.what == "rotation" && r.detail.contains("not in this log")),
        "{why:?}"
    );
    // Without any way from the old key to the new one it is another log's.
    std::fs::remove_file(&path).expect("removed");
    world.start();
    let end = host.ship_more(&world, 1).await.expect_err("refused");
    assert!(end.contains("(unsigned)"), "{end}");
    assert_eq!(host.refused(), ["unsigned"]);
    world.stop();
    std::fs::write(&path, right).expect("written");
    world.start();
    host.ship_more(&world, 1).await.expect("followed");
    assert!(host.seen.size() >= size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_cut_short_anywhere_leaves_a_collector_that_starts() {
    let mut world = World::stopped();
    let old = newest(&world);
    let host = Daemon::new("node-box", Some(old.clone()), None);
    world.start();
    host.ship_more(&world, 5).await.expect("shipped");
    world.stop();
    let mut cut = 0;
    // Close together at first, for a fast machine; long at the end, for a slow one.
    const AFTER: [u64; 14] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 29, 38, 50];
    for (round, after) in AFTER.into_iter().enumerate() {
        let what = if round % 2 == 0 { "rotate" } else { "retire" };
        let mut child = std::process::Command::new(crate::world::BINARY)
            .args(["key", what, "--config"])
            .arg(world.config())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        cut += u32::from(child.wait().expect("ended").code().is_none());
        world.start();
        host.ship_more(&world, 2).await.expect("goes on");
        world.stop();
    }
    assert!(cut > 3, "{cut} were cut: the test shows nothing");
    host.assert_logged_once_after(&mut world).await;
    assert!(host.refused().is_empty(), "{:?}", host.refused());
    // Whatever was cut short, a whole rotation is possible, and the first key leads to the last.
    if !key_command(&world, "rotate").status.success() {
        done(&key_command(&world, "retire"));
        done(&key_command(&world, "rotate"));
    }
    done(&key_command(&world, "retire"));
    assert_verifies(&world, &old);
    let late = Daemon::new("box2", Some(old), None);
    world.start();
    late.ship_more(&world, 1).await.expect("followed");
}
