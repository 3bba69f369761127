//! Who, for whom, until when, approved by whom: alice and bob log in by OpenBao's OpenID Connect provider, alice's session gets a
//! database user, bob approves what she may not approve herself, nobody's answer denies, the end comes without the daemon, and one
//! query says all of it for every command.
//!
//! Runs in the guest of `credentials`, before it. Prints what approvals took.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::credentials::{ADDRESS, PLACE, api, logs_in, made, what};
use super::life::{Down, Live};
use super::renewal::{boot_ns, expiry, renewed};
use crate::ctl;
use crate::guest::{self, ensure};
use crate::session;
use crate::wait::{output, seconds, until, until_true};

const PROVIDER: &str = "identity/oidc/provider/default";
const ROLES: &str = "/etc/guard/roles.yaml";
const ACCOUNTS: [&str; 3] = ["alice", "bob", "mallory"];
/// Approvals that are measured.
const APPROVALS: usize = 10;

/// Who has logged in.
pub struct People {
    /// bob's key for decisions, by its id.
    key_id: String,
    /// alice, as the provider knows her.
    subject: String,
}

/// `guardctl` of somebody who has nothing but the collector's address and CA.
fn guardctl(user: &str, args: &[&str]) -> Command {
    let mut command = session::as_user(user, "/");
    command.args(["guardctl", "--output", "json"]).args(args);
    command
}

fn answer(user: &str, args: &[&str]) -> Result<Value> {
    let out = output(&mut guardctl(user, args), seconds(60))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure(out.status.success(), format!("guardctl {} by {user}: {said}", args.join(" ")))?;
    serde_json::from_slice(&out.stdout).with_context(|| format!("guardctl {}: no JSON", args.join(" ")))
}

/// What a person's browser does: logs in at the provider, agrees, and goes where it is sent.
fn browser(url: &str, account: &str) -> Result<()> {
    let login =
        api("", "POST", &format!("auth/userpass/login/{account}"), &json!({"password": format!("pw-{account}")}))?;
    let token = login["auth"]["client_token"].as_str().context("no login at the provider")?;
    let query = url.split_once('?').context("an address without a query")?.1;
    let sent = api(token, "GET", &format!("{PROVIDER}/authorize?{query}"), &Value::Null)?;
    let (code, state) = (sent["code"].as_str(), sent["state"].as_str());
    let (code, state) = (code.with_context(|| format!("no code: {sent}"))?, state.context("no state")?);
    let port = query.split("127.0.0.1%3A").nth(1).and_then(|rest| rest.split("%2F").next()).context("no port")?;
    let back = format!("http://127.0.0.1:{port}/callback?code={code}&state={state}");
    let out = output(Command::new("curl").args(["-sS", &back]), seconds(60))?;
    let page = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure(page.contains("Guard has your answer"), format!("the browser sees {page:?}"))
}

/// `guardctl login` of a user of this host, with an account of the provider.
fn login(user: &str, account: &str) -> Result<Output> {
    let mut command = guardctl(user, &["login", "--no-browser"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    let first = lines.next().context("it said nothing")??;
    let event: Value = serde_json::from_str(&first).with_context(|| format!("not JSON: {first}"))?;
    let Some(url) = event["url"].as_str() else { anyhow::bail!("no address: {first}") };
    let went = browser(url, account);
    if went.is_err() {
        let _ = child.kill();
    }
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let mut out = child.wait_with_output()?;
    out.stderr = rest.join("\n").into_bytes();
    went.map(|()| out)
}

/// The provider's side, as docs/operations.md says; the client's id.
fn provider() -> Result<String> {
    made("POST", "sys/auth/userpass", &json!({"type": "userpass"}))?;
    let mounts = made("GET", "sys/auth", &Value::Null)?;
    let mount = mounts["data"]["userpass/"]["accessor"].as_str().context("no accessor")?.to_owned();
    let mut reviewers = Vec::new();
    for account in ACCOUNTS {
        made("POST", &format!("auth/userpass/users/{account}"), &json!({"password": format!("pw-{account}")}))?;
        made("POST", "identity/entity", &json!({"name": account}))?;
        let id = entity(account)?;
        let alias = json!({"name": account, "canonical_id": id, "mount_accessor": mount});
        made("POST", "identity/entity-alias", &alias)?;
        if account != "mallory" {
            reviewers.push(id);
        }
    }
    made("POST", "identity/group", &json!({"name": "guard-reviewers", "member_entity_ids": reviewers}))?;
    let template = "{\"preferred_username\": {{identity.entity.name}}, \"groups\": {{identity.entity.groups.names}}}";
    made("POST", "identity/oidc/scope/profile", &json!({"template": template}))?;
    let client = json!({"client_type": "public", "redirect_uris": ["http://127.0.0.1/callback"],
        "assignments": ["allow_all"], "id_token_ttl": "15m", "key": "default"});
    made("POST", "identity/oidc/client/guard", &client)?;
    let client = made("GET", "identity/oidc/client/guard", &Value::Null)?;
    let id = client["data"]["client_id"].as_str().context("no client id")?.to_owned();
    made("POST", PROVIDER, &json!({"scopes_supported": ["profile"], "allowed_client_ids": [id]}))?;
    Ok(id)
}

fn entity(account: &str) -> Result<String> {
    let entity = made("GET", &format!("identity/entity/name/{account}"), &Value::Null)?;
    entity["data"]["id"].as_str().map(str::to_owned).context("no entity")
}

/// The collector lets members of the group log in; people get its address and its CA.
fn collector(client_id: &str) -> Result<()> {
    let text = fs::read_to_string(guest::COLLECTOR_CONFIG)?.replace("# enrol_listen = ", "enrol_listen = ");
    let table = format!(
        "\n[oidc]\nissuer = \"{ADDRESS}/v1/{PROVIDER}\"\nclient_id = \"{client_id}\"\nca_file = \"{PLACE}/vault-ca.pem\"\n\
         [[oidc.allow]]\nrole = \"reviewer\"\nclaim = \"groups\"\nvalues = [\"guard-reviewers\"]\n\n[index]\n"
    );
    ensure(text.contains("\n[index]\n"), "the collector's configuration has no [index]")?;
    guest::kill_collector()?;
    fs::write(guest::COLLECTOR_CONFIG, text.replace("\n[index]\n", &table))?;
    guest::start_collector()?;
    until_true("the collector answers", seconds(60), || Ok(ctl::log_size().is_ok()))?;
    let ca = fs::read_to_string("/var/lib/guard/collector/ca/ca.pem")?;
    for (user, id) in [("alice", 1000), ("bob", 1001), ("agent", 1002)] {
        let dir = format!("/home/{user}/.config/guard");
        fs::create_dir_all(&dir)?;
        fs::write(format!("{dir}/ca.pem"), &ca)?;
        fs::write(format!("{dir}/guardctl.toml"), "collector = \"https://localhost:7443\"\nca = \"ca.pem\"\n")?;
        for path in
            [format!("/home/{user}/.config"), dir.clone(), format!("{dir}/ca.pem"), format!("{dir}/guardctl.toml")]
        {
            chown(path, Some(id), Some(id))?;
        }
    }
    Ok(())
}

impl People {
    /// Sets up provider and collector, and lets people log in. The daemon is restarted by whoever calls.
    pub fn prepare() -> Result<Self> {
        collector(&provider()?)?;
        let nobody = output(&mut guardctl("alice", &["whoami"]), seconds(30))?;
        let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
        ensure(nobody.status.code() == Some(78) && said.contains("run `guardctl login`"), &said)?;
        for person in ["alice", "bob"] {
            let out = login(person, person)?;
            let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            ensure(out.status.success() && said.contains("reviewer"), said)?;
            let file = fs::metadata(format!("/home/{person}/.local/state/guard/login.pem"))?;
            ensure(file.permissions().mode() & 0o777 == 0o600, "others may read the key")?;
            let who = answer(person, &["whoami"])?;
            ensure(who["name"] == person && who["not_after"].is_string(), &who)?;
        }
        let out = login("agent", "mallory")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure(out.status.code() == Some(77) && said.contains("may not log in here"), said)?;
        let key = answer("bob", &["key", "new"])?;
        let key_of_alice = answer("alice", &["key", "new"])?;
        let of = |key: &Value, name: &str| key[name].as_str().map(str::to_owned).context("no key");
        fs::write(
            ROLES,
            format!(
                "version: 1\nroles:\n  all: {{request: ['*']}}\n  reviewer: {{review: {{categories: ['*'], max_risk: 100}}}}\n\
                 people: {{alice: [all, reviewer], bob: [all, reviewer]}}\nagents: {{coder: [all]}}\nkeys:\n  bob: [{{key: \
                 '{}'}}]\n  alice: [{{key: '{}'}}]\n",
                of(&key, "key")?,
                of(&key_of_alice, "key")?
            ),
        )?;
        Ok(Self { key_id: of(&key, "key_id")?, subject: entity("alice")? })
    }

    /// What the daemon is told of them.
    pub fn tables(&self) -> String {
        format!("[roles]\nfile = \"{ROLES}\"")
    }

    /// All of it, with a daemon that has credentials and roles.
    pub fn run(&self) -> Result<()> {
        let mut live =
            Live::start_with("5m", &["--credential", "db", "--ticket", "OPS-7", "--purpose", "rotate reports"])?;
        let id = live.session.id.clone();
        for key in ["login.pem", "review.key"] {
            let path = format!("/home/alice/.local/state/guard/{key}");
            let seen = live.tell(&format!("show {path}"), &format!("shown {path}"))?;
            ensure(seen == "errno 1" || seen == "errno 13", format!("the session reads {key}"))?;
        }
        approvals(&mut live)?;
        self.timeout(&mut live)?;
        renewed("alice", &id, "290s")?;
        live.say("exit 0")?;
        live.ended()?;
        let last = expired()?;
        self.chain(&[id, last])
    }

    /// Nobody answers: the daemon's own clock denies.
    fn timeout(&self, live: &mut Live) -> Result<()> {
        let made = format!("{}/never", guest::fresh_dir("unanswered")?);
        live.say(&format!("run /usr/bin/mkdir -p {made}"))?;
        ctl::pending(&live.session.id)?;
        live.session.line("run errno 1", seconds(60)).context("it waits longer than its hold")?;
        until_true("the deadline denies", seconds(60), || {
            let records = ctl::records(&live.session.id)?;
            Ok(ctl::of_kind(&records, "exec_decision").iter().any(|r| r["body"]["disposition"] == "timed_out"))
        })?;
        ensure(!Path::new(&made).exists(), "it ran")
    }

    /// One query, and every command says for whom, until when, and by whom it was allowed.
    fn chain(&self, sessions: &[String]) -> Result<()> {
        ctl::shipped()?;
        let all = ctl::lines("root", &["query", "--initiator", "alice", "--since", "1h", "--limit", "100000"])?;
        let judged: Vec<&Value> = all.iter().filter(|r| r["kind"] == "exec" || r["kind"] == "exec_request").collect();
        for session in sessions {
            let of: Vec<&&Value> = judged.iter().filter(|r| r["session"] == session.as_str()).collect();
            ensure(of.len() > 3, format!("{} commands of session {session}", of.len()))?;
        }
        for record in &judged {
            let who = &record["body"]["identity"];
            let whole = who["initiator"] == "alice"
                && who["agent"] == "coder"
                && who["instance"].as_str().is_some_and(|i| i.starts_with("spiffe://"))
                && who["rights_digest"].as_str().is_some_and(|d| d.len() == 64)
                && who["roles_digest"].as_str().is_some_and(|d| d.len() == 64);
            ensure(whole && record["body"]["verdict"]["tier"].is_string(), record)?;
        }
        let shown = ctl::json("root", &["session", "show", sessions.first().context("no session")?])?;
        let approved = |of: &Value| {
            let commands = of["answers"]["ran"].as_array().cloned().unwrap_or_default();
            commands
                .into_iter()
                .filter(|c| c["disposition"] == "approved" && c["reviewer"] == "bob")
                .collect::<Vec<_>>()
        };
        let approved = approved(&shown);
        ensure(approved.len() == APPROVALS + 1, format!("{} approvals: {shown}", approved.len()))?;
        ensure(approved.iter().all(|c| c.to_string().contains(&self.key_id)), "whose key signed is not shown")?;
        // And who alice is, is known from the login that the log holds.
        let logins = ctl::records_from(0)?;
        let logins = ctl::of_kind(&logins, "certificate_issued");
        let of_alice = logins.iter().find(|r| r["body"]["how"] == "login" && r["body"]["name"] == "alice");
        let body = &of_alice.context("no record of alice's login")?["body"];
        ensure(
            body["subject"] == self.subject.as_str() && body["by"].as_str().is_some_and(|by| by.starts_with(ADDRESS)),
            body,
        )
    }
}

/// alice may not, bob may; and how long that takes.
fn approvals(live: &mut Live) -> Result<()> {
    let (id, dir) = (live.session.id.clone(), guest::fresh_dir("approved")?);
    let mut took = Vec::new();
    for number in 0..=APPROVALS {
        let made = format!("{dir}/{number}");
        live.say(&format!("run /usr/bin/mkdir {made}"))?;
        let request = ctl::pending(&id)?["request"].as_str().context("no id")?.to_owned();
        if number == 0 {
            let args = ["review", "approve", &request, "--yes", "--reason", "mine"];
            let out = output(&mut guardctl("alice", &args), seconds(60))?;
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            ensure(out.status.code() == Some(77) && said.contains("somebody else must decide"), said)?;
            ensure(!Path::new(&made).exists(), "alice approved her own request")?;
        }
        let asked = SystemTime::now();
        answer("bob", &["review", "approve", &request, "--yes", "--reason", "fine"])?;
        until_true("what bob approved runs", seconds(30), || {
            Ok(live.session.out().matches("run ran 0").count() == number + 1)
        })?;
        took.push((request, asked, fs::metadata(&made)?.modified()?));
    }
    // The first one was looked at before; programs and pages are warm afterwards.
    report(&ctl::records(&id)?, took.get(1..).unwrap_or_default())
}

/// Milliseconds of the day.
fn of_day(time: SystemTime) -> Result<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_millis())? % 86_400_000)
}

/// The same of a record's `2026-11-30T04:05:06.789Z`.
fn of_record(record: &Value) -> Result<i64> {
    let text = record["time"].as_str().and_then(|t| t.split('T').nth(1)).context("no time")?;
    let parts: Vec<f64> = text.trim_end_matches('Z').split(':').filter_map(|p| p.parse().ok()).collect();
    let [hours, minutes, secs] = parts.as_slice() else { anyhow::bail!("no time: {text}") };
    Ok(((hours * 3600.0 + minutes * 60.0 + secs) * 1000.0).round() as i64)
}

/// Prints where the time of an approval goes.
fn report(records: &[Value], took: &[(String, SystemTime, SystemTime)]) -> Result<()> {
    let mut parts: [Vec<i64>; 4] = Default::default();
    for (request, asked, ran) in took {
        let of = |kind| {
            let found = ctl::of_kind(records, kind).into_iter().find(|r| r["body"]["request"] == request.as_str());
            of_record(found.with_context(|| format!("no {kind} of {request}"))?)
        };
        let (collector, host) = (of("review_decision")?, of("exec_decision")?);
        let times = [collector - of_day(*asked)?, host - collector, of_day(*ran)? - host, of_day(*ran)? - collector];
        parts.iter_mut().zip(times).for_each(|(part, time)| part.push(time));
    }
    let names = [
        "from guardctl's start to the collector's record",
        "from there to the host's record",
        "from there to the program's work",
        "from the collector's record to the program's work",
    ];
    for (name, part) in names.into_iter().zip(&mut parts) {
        part.sort_unstable();
        let (least, most) = (part.first().context("nothing")?, part.last().context("nothing")?);
        let median = part.get(part.len() / 2).context("nothing")?;
        println!("approval: {name}: {median} ms ({least} to {most}, {} approvals)", part.len());
    }
    Ok(())
}

/// A session's end comes without the daemon; then its database user is none any more.
fn expired() -> Result<String> {
    let mut live = Live::start_with("40s", &["--credential", "db"])?;
    let id = live.session.id.clone();
    let mut value = |name: &str| {
        let path = format!("/run/guard/credentials/{name}");
        live.tell(&format!("show {path}"), &format!("shown {path}"))
    };
    let (user, password) = (value("db-user")?, value("db-password")?);
    ensure(logs_in(&user, &password)?, "the database knows the session's user")?;
    let down = Down::new()?;
    let left = expiry()?.saturating_sub(boot_ns());
    std::thread::sleep(Duration::from_nanos(left) + seconds(2));
    live.nothing_runs(5)?;
    down.up()?;
    until_true("the database refuses the user", seconds(90), || Ok(!logs_in(&user, &password)?))?;
    live.ended()?;
    until("its end and the credential's are on record", seconds(60), || {
        let records = ctl::records(&id)?;
        let expired = ctl::of_kind(&records, "session_expired").iter().any(|r| r["body"]["what"] == "expired");
        Ok((expired && what(&records, "credential_revoked", "db") == 1).then_some(id.clone()))
    })
}
