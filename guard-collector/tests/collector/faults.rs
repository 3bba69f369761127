//! Calls to the file system fail while hosts ship, once or for good: `strace` does it, from outside, to the real collector.
//!
//! Whatever fails, nothing is acknowledged that is not there after a kill, the collector goes on or stops and says which file, and
//! what it left starts again and is whole. The crates of the journal and the log are tried call by call in
//! `guard-log/tests/faults`; these are the calls of everything together.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guard_proto::v1::StatusRequest;
use tonic::Code;

use crate::host::{Host, Ship};
use crate::world::World;

/// Records before anything fails, and while it does: more than a full tile.
const BEFORE: usize = 40;
const DURING: usize = 400;
/// How long an acknowledgement is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// One call that fails.
#[derive(Clone, Copy, Debug)]
struct Fault {
    call: &'static str,
    /// Only on this file of the collector's folder.
    file: Option<&'static str>,
    error: &'static str,
    /// Which of each thread's calls: a number, or a number and `+` for all from there on.
    when: &'static str,
}

const fn fault(call: &'static str, error: &'static str, when: &'static str) -> Fault {
    Fault { call, file: None, error, when }
}

/// Where the log writes first.
const SEGMENT: Option<&str> = Some("c/data/wal/00000000000000000000.wal");

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// Everything below was acknowledged.
    acked: u64,
    /// Why the stream ended, if it did.
    ended: Option<Code>,
    /// It still ran, and had published everything although nobody started it again.
    caught_up: bool,
    /// Calls that failed. The n-th of a thread may never come: which thread does what is not the same each time.
    failed: usize,
    /// Errors that it said.
    said: Vec<String>,
}

/// `strace` on a process that runs already, when it has taken hold.
fn inject(world: &World, fault: Fault) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &world.pid().to_string(), "-o"]).arg(world.path("trace"));
    strace.args(["-e", &format!("trace={}", fault.call)]);
    strace.args(["-e", &format!("inject={}:error={}:when={}", fault.call, fault.error, fault.when)]);
    if let Some(file) = fault.file {
        strace.arg("-P").arg(world.path(file));
    }
    let mut strace = strace.stderr(Stdio::piped()).spawn().expect("strace is needed: apt-get install strace");
    let mut words = BufReader::new(strace.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    assert!(words.any(|line| line.contains("attached")), "strace may not attach to a child of this process");
    std::thread::spawn(move || words.for_each(drop));
    strace
}

/// Ships while the call fails; kills whatever runs then; starts it again without a fault and checks all that was promised.
async fn suffer(fault: Fault) -> Outcome {
    let (mut world, mut host) = (World::new(), Host::new());
    host.fill(BEFORE);
    host.ship(&world.node("node-box").await).await;
    let node = world.node("node-box").await;
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    host.fill(DURING);
    let mut strace = inject(&world, fault);
    let (mut acked, mut ended) = (BEFORE as u64, None);
    for batch in host.records[BEFORE..].chunks(50) {
        ship.send(batch).await;
        match tokio::time::timeout(PATIENCE, ship.ack()).await {
            Ok(Ok(ack)) => acked = acked.max(ack.next_seq),
            Ok(Err(status)) => ended = Some(status.code()),
            Err(_) => break,
        }
        if ended.is_some() {
            break;
        }
    }
    // What fails once may fail once on each thread that comes to it; what fails for good needs no long wait.
    let patience = Duration::from_secs(if fault.when.ends_with('+') { 1 } else { 10 });
    let caught_up = world.runs() && catches_up(&world, patience).await;
    drop((ship, node));
    world.kill();
    let _ = strace.wait();
    let failed = std::fs::read_to_string(world.path("trace")).expect("trace").matches("(INJECTED)").count();
    assert!(failed > 0 || !fault.when.starts_with('1'), "{fault:?}: nothing failed");
    let said = world.said().into_iter().filter(|line| line.contains(" ERROR ")).collect();
    world.start();
    let node = world.node("node-box").await;
    let (ship, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
    assert!(welcome.next_seq >= acked, "{fault:?}: {acked} were acknowledged, {} are there", welcome.next_seq);
    drop(ship);
    host.ship(&node).await;
    let logged: Vec<_> = world.records().await.into_iter().filter(|r| r.header().host == host.id).collect();
    assert_eq!(logged, host.records, "{fault:?}");
    assert!(catches_up(&world, Duration::from_secs(10)).await, "{fault:?}: not published after the restart");
    world.kill();
    let report = world.audit();
    assert!(report.is_ok(), "{fault:?}: {:?}", report.findings);
    Outcome { acked, ended, caught_up, failed, said }
}

/// Whether the checkpoint reaches the log while the fault lasts. Who asks is answered or refused, and not kept waiting.
async fn catches_up(world: &World, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let status = async { world.control("admin").await.status(StatusRequest {}).await };
        let status = tokio::time::timeout(Duration::from_secs(20), status).await.expect("an answer");
        match status {
            Ok(s) if s.get_ref().log_size == s.get_ref().checkpoint_size => return true,
            // The log has failed, and says that only a restart helps.
            Ok(_) if world.said().iter().any(|line| line.contains("restart the collector")) => return false,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    false
}

/// All of them, and what each came to.
async fn all(faults: &[Fault]) -> Vec<(Fault, Outcome)> {
    let mut outcomes = Vec::new();
    for fault in faults {
        outcomes.push((*fault, suffer(*fault).await));
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_ahead_that_fails_is_never_acknowledged() {
    let on_segment = |error, when| Fault { file: SEGMENT, ..fault("write", error, when) };
    let faults = [
        on_segment("EIO", "1"),
        on_segment("ENOSPC", "1"),
        on_segment("ENOSPC", "2"),
        on_segment("ENOSPC", "1+"),
        fault("fdatasync", "EIO", "1"),
        fault("fdatasync", "EIO", "3"),
        fault("fdatasync", "ENOSPC", "1+"),
    ];
    for (fault, outcome) in all(&faults).await {
        let reached = BEFORE as u64 + 50 * fault.when.trim_end_matches('+').parse::<u64>().expect("a number") - 50;
        assert_eq!(outcome.acked, reached, "{fault:?}: {outcome:?}");
        assert_eq!((outcome.ended, outcome.caught_up), (Some(Code::Unavailable), false), "{fault:?}: {outcome:?}");
        assert!(outcome.said.iter().any(|line| line.contains("/data/wal/")), "{fault:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_fails_costs_no_record() {
    let faults = [
        fault("fsync", "EIO", "1"),
        fault("fsync", "EIO", "4"),
        fault("fsync", "EIO", "1+"),
        fault("rename", "EIO", "1"),
        fault("rename", "ENOSPC", "3"),
        fault("rename", "EIO", "1+"),
        fault("openat", "EMFILE", "1"),
        fault("openat", "ENOSPC", "1+"),
        fault("mkdir", "ENOSPC", "1+"),
        fault("fchmod", "EIO", "1+"),
    ];
    for (fault, outcome) in all(&faults).await {
        assert_eq!(outcome.acked, (BEFORE + DURING) as u64, "{fault:?}: {outcome:?}");
        // What fails once may hit the index, which syncs and opens files too.
        let once = !fault.when.ends_with('+');
        let names = |line: &String| line.contains("/c/data/log") || line.contains("/c/lock/");
        let named = outcome.said.iter().any(|line| names(line) || once && line.contains("the index"));
        assert!(named || outcome.failed == 0, "{fault:?}: {outcome:?}");
        // It is tried again, and stays wrong as long as the fault does.
        assert_eq!(outcome.caught_up, once, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_fails_costs_no_record() {
    let faults = [fault("pwrite64", "EIO", "1"), fault("pwrite64", "ENOSPC", "9"), fault("pwrite64", "EIO", "1+")];
    for (fault, outcome) in all(&faults).await {
        assert_eq!(outcome.acked, (BEFORE + DURING) as u64, "{fault:?}: {outcome:?}");
        let named = outcome.said.iter().any(|line| line.contains("the index"));
        assert!(named || outcome.failed == 0, "{fault:?}: {outcome:?}");
        assert!(outcome.caught_up, "{fault:?}: {outcome:?}");
    }
}
