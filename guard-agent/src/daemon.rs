//! Puts the daemon together, in the order that fails closed, and takes it apart again.
//!
//! Order: launcher before threads; journal, policy and certificates before the kernel side; the canary before the first
//! session. Nothing is started half: every error up to "ready" ends the process with a code and a reason.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guard_log::journal::{Journal, JournalOptions, OpenReport};
use guard_log::record::{HostId, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{JournalRepair, NodeStart, NodeStop};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::adopt::{self, Plan};
use crate::blobs::{Blobs, DigestKey, Room};
use crate::config::{Config, Mode};
use crate::credentials::{self, Credentials};
use crate::exit::{Code, Failure, failed};
use crate::kept::{self, Former};
use crate::kernel::canary::{self, Measured};
use crate::kernel::cgroup;
use crate::kernel::load::{self, Kernel, LoadOptions};
use crate::kernel::{heap, spawn};
use crate::launcher::Forked;
use crate::node::{Node, Parts};
use crate::outcome::{self, Outcomes};
use crate::policies;
use crate::protect::{self, Protected};
use crate::reach::{self, Reach};
use crate::seen::Seen;
use crate::supervisor::{Heart, LEAVE_SIGNAL, SIGNALS};
use crate::{control, inside, preflight, requests, ship, watch};

const BEAT: Duration = Duration::from_millis(500);
/// Part of the journal that only gaps, ends and repairs may use.
const RESERVE: u64 = 1 << 20;

/// Runs until it is asked to stop.
pub fn run(config: &Config, heart: &Heart) -> Result<(), Failure> {
    // A thread that is gone while others go on would leave holds unanswered: the whole daemon goes, and comes again.
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        show(info);
        std::process::abort();
    }));
    heap::few_arenas();
    let signals = spawn::signal_fd(&SIGNALS).map_err(failed(Code::Internal))?;
    let forked = Forked::fork().map_err(failed(Code::Internal))?;
    preflight::raise_descriptor_limit(config);
    let node = start(config, forked, heart)?;
    heap::give_back();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(mode = crate::status::mode(&node).0, "ready");
    heart.beat();
    match serve(&node, heart, &signals) {
        Asked::Stop => stop(&node, heart),
        Asked::Leave => leave(&node, heart),
    }
    Ok(())
}

fn start(config: &Config, forked: Forked, heart: &Heart) -> Result<Arc<Node>, Failure> {
    config.collector.files().settle().map_err(failed(Code::Config))?;
    ship::endpoint(&config.collector).map_err(failed(Code::Config))?;
    let collector = config.collector.pinned().map_err(failed(Code::Config))?;
    let policies = policies::load(config).map_err(failed(Code::Config))?;
    let host = host_id(&config.node.state_dir)?;
    let (journal, opened) = open_journal(config, host)?;
    let kept = open_blobs(config, &journal).map_err(failed(Code::Unavailable))?;
    let (pinned, admin) = (collector.log_key(), collector.admin_key());
    let (pinned, admin) = (pinned.map_err(failed(Code::Config))?, admin.map_err(failed(Code::Config))?);
    let seen = Seen::open(&config.node.state_dir, pinned.as_ref(), admin.as_ref()).map_err(failed(Code::Config))?;
    let credentials = Credentials::open(config).map_err(failed(Code::Config))?;
    let found = kept::read(&config.node.state_dir);
    let boot_id = read_line("/proc/sys/kernel/random/boot_id");
    let launcher = forked.connect().map_err(failed(Code::Internal))?;
    heart.step();
    let kernel = load_kernel(config, heart)?;
    let reach = Reach::new(config).map_err(failed(Code::Config))?;
    reach.install(config, &kernel).map_err(failed(Code::Unavailable))?;
    let plan = adopt::plan(config, &kernel, &boot_id, found);
    let protected = Protected::new(config).map_err(failed(Code::Config))?;
    protected.sessions_go_on(&kernel, plan.homes()).map_err(failed(Code::Unavailable))?;
    let empty = plan.clear_the_rest(config, &kernel)?;
    heart.step();
    let measured =
        canary::measure_at_start(&kernel, &launcher, &config.kernel.cgroup).map_err(failed(Code::Unavailable))?;
    if config.kernel.mode == Mode::Enforce && !measured.enforcing() {
        // What the kernel does not enforce must not run. The next start that succeeds records these ends.
        if adopt::kill_all_but(&config.kernel.cgroup, &[]) {
            let _ = load::unpin_all(&config.kernel.pin_dir);
        }
        return Err(not_enforcing(&measured));
    }
    let boot = (boot_id, rustix::system::uname().release().to_string_lossy().into_owned());
    let node = Node::new(Parts {
        config: config.clone(),
        kernel,
        launcher,
        journal,
        host,
        policies,
        protected,
        measured,
        reach,
        kept,
        seen,
        credentials,
        boot,
    });
    for warning in preflight::support(config, 0, &[]).warnings {
        tracing::warn!("{warning}");
    }
    heart.step();
    record_start(&node, &opened, plan.adopted())?;
    inside::door::keep_only(&plan.adopted());
    succeed(&node, plan, empty)?;
    ship::spawn(&node).map_err(failed(Code::Internal))?;
    reach::spawn(&node).map_err(failed(Code::Internal))?;
    watch::spawn(&node).map_err(failed(Code::Internal))?;
    protect::spawn(&node).map_err(failed(Code::Internal))?;
    credentials::spawn(&node).map_err(failed(Code::Internal))?;
    control::spawn(&node).map_err(|e| Failure {
        code: Code::Unavailable,
        text: format!("control socket {}: {e}", node.config.control.socket.display()),
    })?;
    Ok(node)
}

/// Random, made at the first start, kept in the state folder.
fn host_id(state_dir: &Path) -> Result<HostId, Failure> {
    let path = state_dir.join("host-id");
    let wrong = |e: String| Failure { code: Code::Config, text: format!("{}: {e}", path.display()) };
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| wrong("is not a host id (32 hexadecimal digits)".into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(state_dir).map_err(|e| wrong(e.to_string()))?;
            let id = HostId::random().map_err(|e| wrong(e.to_string()))?;
            guard_log::frame::replace(&path, id.to_string().as_bytes()).map_err(|e| wrong(e.to_string()))?;
            Ok(id)
        }
        Err(e) => Err(wrong(e.to_string())),
    }
}

fn open_journal(config: &Config, host: HostId) -> Result<(Journal, OpenReport), Failure> {
    let options = JournalOptions {
        dir: config.journal.dir.clone(),
        segment_bytes: crate::record::segment_bytes(config),
        max_bytes: config.journal.max_mib << 20,
        reserve_bytes: RESERVE,
        session_percent: config.journal.session_percent,
        keep: Duration::from_secs(3600 * config.journal.keep_hours),
        require_real_disk: config.kernel.mode == Mode::Enforce,
    };
    Journal::open(options, host).map_err(failed(Code::Unavailable))
}

/// Blobs may take a quarter of what records may.
fn open_blobs(config: &Config, journal: &Journal) -> std::io::Result<(Blobs, DigestKey)> {
    let room = Room { max_bytes: (config.journal.max_mib << 20) / 4, session_percent: config.journal.session_percent };
    let blobs = Blobs::open(&config.journal.dir, room, journal.state().next_seq)?;
    Ok((blobs, DigestKey::open(&config.node.state_dir)?))
}

fn load_kernel(config: &Config, heart: &Heart) -> Result<Kernel, Failure> {
    let dir = &config.kernel.cgroup;
    if !dir.exists() {
        fs::create_dir(dir).map_err(|e| Failure {
            code: Code::Unavailable,
            text: format!("making Guard's cgroup {}: {e}; is cgroup v2 mounted there?", dir.display()),
        })?;
    }
    share_out(config)?;
    let options = LoadOptions { pin_dir: config.kernel.pin_dir.clone(), cgroup: dir.clone() };
    let kernel = Kernel::load(&options, &|| heart.step()).map_err(failed(Code::Unavailable))?;
    for (program, instructions) in kernel.instructions() {
        tracing::debug!(program, instructions, "verified");
    }
    Ok(kernel)
}

/// Limits for the cgroups of sessions: without one for processes a session could fill the kernel's maps, and others would
/// be denied. Processor time is shared out where the host can.
fn share_out(config: &Config) -> Result<(), Failure> {
    if let Err(error) = cgroup::enable(&config.kernel.cgroup, "pids") {
        if config.kernel.mode == Mode::Enforce {
            let text =
                format!("sessions cannot be limited in processes: {error}; is the cgroup v2 controller `pids` there?");
            return Err(Failure { code: Code::Unavailable, text });
        }
        tracing::warn!(%error, "sessions are not limited in processes");
    }
    if let Err(error) = cgroup::enable(&config.kernel.cgroup, "cpu") {
        tracing::warn!(%error, "processor time is not shared out among sessions");
    }
    Ok(())
}

fn not_enforcing(measured: &Measured) -> Failure {
    let active = read_line("/sys/kernel/security/lsm");
    let text = format!(
        "this kernel does not enforce, measured by three trial execs: {}active LSMs: `{active}`. Put bpf into the \
         kernel's `lsm=` parameter (for example lsm={active},bpf) and boot again; or set kernel.mode = \"observe\" to \
         record without enforcing",
        measured.detail
    );
    Failure { code: Code::Config, text }
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn record_start(node: &Arc<Node>, opened: &OpenReport, sessions_adopted: Vec<String>) -> Result<(), Failure> {
    let mut recorded = true;
    for repair in &opened.repairs {
        tracing::error!(what = repair.what, file = repair.file, bytes = repair.bytes, "the journal was damaged");
        let body = JournalRepair {
            what: repair.what.into(),
            file: repair.file.clone(),
            offset: repair.offset,
            bytes: repair.bytes,
        };
        recorded &= node.note(SessionId::NONE, Body::JournalRepair(body)).is_some();
    }
    let config = &node.config;
    let (measured, _) = node.measured();
    let body = NodeStart {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: node.release.clone(),
        mode: if node.observes() { "observe" } else { "enforce" }.into(),
        canary: Some(watch::result(&measured, node.observes())),
        boot_id: node.boot_id.clone(),
        pid: std::process::id(),
        policy_digest: node.policy().digest.clone(),
        journal_dir: config.journal.dir.display().to_string(),
        lsm: read_line("/sys/kernel/security/lsm"),
        adopted: node.kernel.adopted(),
        sessions_adopted,
    };
    let loaded = node.policies.all().into_iter().map(|policy| Body::PolicyLoaded(policies::loaded(&policy, config)));
    for body in std::iter::once(Body::NodeStart(body)).chain(loaded) {
        let ticket = node.append(SessionId::NONE, body).map_err(failed(Code::Unavailable))?;
        ticket.wait().map_err(failed(Code::Unavailable))?;
    }
    // Those records are durable, and so is what was appended before them.
    if recorded {
        node.journal.repairs_recorded().map_err(failed(Code::Unavailable))?;
    }
    Ok(())
}

/// Records what an earlier daemon's sessions did while there was no daemon and the end of those that do not go on, then goes
/// on with the others.
fn succeed(node: &Arc<Node>, plan: Plan, empty: bool) -> Result<(), Failure> {
    let ended: Vec<Former> = plan.ended.iter().map(|(former, _)| former.clone()).collect();
    let adopted = adopt::take_over(node, plan.heirs)?;
    let mut outcomes = Outcomes::new(node, &ended);
    let absent = || Failure { code: Code::Internal, text: "the event ring has no reader".into() };
    let mut reader = node.kernel.take_events().ok_or_else(absent)?;
    if node.kernel.lost_events() > 0 {
        node.note_gap(
            SessionId::NONE,
            "kernel",
            "events of another version's layout",
            node.kernel.lost_events(),
            node.kernel.lost_events(),
        );
    }
    outcomes.drain(&mut reader);
    node.losses.close_former(node, &ended.iter().map(|f| (f.key, f.id)).collect());
    for (former, why) in &plan.ended {
        let ticket = node.append(former.id, adopt::end_record(former, why)).map_err(failed(Code::Unavailable))?;
        ticket.wait().map_err(failed(Code::Unavailable))?;
        tracing::warn!(session = %former.id, reason = why.0, detail = why.1, "a session of an earlier daemon does not go on");
        if let Ok(state) = &former.state {
            node.keep_exited(state.owner, &former.identity.session_id, adopt::exited(why));
        }
        if empty {
            adopt::forget(&node.config.node.state_dir, former);
        }
    }
    requests::close_former(node).map_err(failed(Code::Unavailable))?;
    adopted.iter().for_each(|(session, ..)| adopt::find_images(node, session));
    outcomes.spawn(reader).map_err(failed(Code::Internal))?;
    for session in adopted {
        tracing::info!(session = %session.0.id, "a session of an earlier daemon goes on");
        adopt::go_on(node, session).map_err(failed(Code::Internal))?;
    }
    Ok(())
}

/// What the daemon was asked for.
enum Asked {
    Stop,
    Leave,
}

/// The main thread: signals, and a heartbeat that stops when the threads that count stand still.
fn serve(node: &Arc<Node>, heart: &Heart, signals: &OwnedFd) -> Asked {
    let mut seen = (u64::MAX, u64::MAX);
    let pause = Timespec::try_from(BEAT).ok();
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        let _ = poll(&mut fds, pause.as_ref());
        let mut bytes = [0_u8; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(signals, &mut bytes).is_ok_and(|n| n > 0) {
            match bytes.first_chunk::<4>().map_or(0, |b| u32::from_ne_bytes(*b)).cast_signed() {
                libc::SIGHUP => reload(node),
                LEAVE_SIGNAL => return Asked::Leave,
                _ => return Asked::Stop,
            }
        }
        if node.launcher.is_gone() {
            // No session can start and no canary can be measured: the supervisor starts a whole daemon again.
            tracing::error!("the launcher has ended");
            std::process::abort();
        }
        let now = (watch::ROUNDS.load(Ordering::Relaxed), outcome::PROGRESS.rounds());
        if now.0 != seen.0 && now.1 != seen.1 {
            heart.beat();
        }
        seen = now;
    }
}

fn reload(node: &Arc<Node>) {
    match policies::reload(node) {
        Ok(digest) => tracing::info!(digest, "policy and roles reloaded"),
        Err(error) => tracing::error!(error, "the new policy or roles are refused; what is in force stays"),
    }
}

/// Ends every session, records it, ships what it can within a moment, and takes the programs out if nothing governed is left.
fn stop(node: &Arc<Node>, heart: &Heart) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    node.set_stopping();
    let sessions = node.sessions();
    let closed = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
    for session in &sessions {
        session.request_end(node, "daemon_stopped", String::new());
    }
    wait_until(heart, Duration::from_secs(12), || node.sessions().is_empty());
    // What cannot be revoked now the next daemon revokes, or it ends by itself.
    wait_until(heart, Duration::from_secs(5), || !node.credentials.is_revoking(node));
    let lifted = node.kernel.lifted();
    let left = node.sessions().len();
    let body = NodeStop { reason: "asked to stop".into(), sessions_closed: closed };
    if let Some(ticket) = node.note(SessionId::NONE, Body::NodeStop(body)) {
        let _ = ticket.wait();
    }
    wait_until(heart, Duration::from_secs(2), || {
        let state = node.journal.state();
        node.link.down_since().is_some() || state.acked_next_seq >= state.next_seq
    });
    node.seen.keep_now();
    node.novelty.keep();
    node.journal.close();
    if left == 0 && adopt::kill_all_but(&node.config.kernel.cgroup, &[]) {
        if let Err(error) = load::unpin_all(&node.config.kernel.pin_dir) {
            tracing::error!(%error, "unpinning the kernel programs");
        }
    } else if !lifted {
        tracing::error!(left, "processes of sessions are left: the kernel programs stay and deny their execs");
    }
    let _ = fs::remove_file(&node.config.control.socket);
}

/// Ends at once and leaves sessions, programs and maps to the next daemon. Held execs end in EPERM: with the last descriptor
/// of a fanotify group the kernel lets them go, and denies them for want of a grant.
fn leave(node: &Arc<Node>, heart: &Heart) {
    node.set_stopping();
    node.sessions().iter().for_each(|session| session.note_counts());
    let body = NodeStop { reason: "leaves its sessions to the next daemon".into(), sessions_closed: 0 };
    if let Some(ticket) = node.note(SessionId::NONE, Body::NodeStop(body)) {
        let _ = ticket.wait();
    }
    heart.beat();
    node.seen.keep_now();
    node.novelty.keep();
    node.journal.close();
    let _ = fs::remove_file(&node.config.control.socket);
}

fn wait_until(heart: &Heart, patience: Duration, done: impl Fn() -> bool) {
    let end = Instant::now() + patience;
    while !done() && Instant::now() < end {
        heart.beat();
        std::thread::sleep(Duration::from_millis(20));
    }
}
