//! Credentials of sessions, from a real OpenBao with a real PostgreSQL behind it, both in the guest: who gets them, who sees them,
//! how long they are good.
//!
//! Runs by itself, in a guest that has both programs (`guard-guest-tests identity`), after what `people` does with them.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure as ensured};
use serde_json::{Value, json};

use super::fail_closed::now;
use super::life::{Down, Live};
use super::people::People;
use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Session, Start};
use crate::wait::{output, seconds, until, until_true};

const BAO: &str = "/mnt/copy/bao";
pub(super) const PLACE: &str = "/run/bao";
pub(super) const ADDRESS: &str = "https://127.0.0.1:8200";
const PORT: &str = "54321";
const FOLDER: &str = "/run/guard/credentials";
/// What the daemon's role may do at the provider, as docs/operations.md says.
const POLICY: &str = "path \"secret/data/app\" {capabilities=[\"read\"]} \
    path \"database/creds/reports\" {capabilities=[\"read\"]} \
    path \"pki/issue/app\" {capabilities=[\"update\"]} path \"pki/revoke\" {capabilities=[\"update\"]} \
    path \"auth/token/create\" {capabilities=[\"update\"]} \
    path \"auth/token/renew-accessor\" {capabilities=[\"update\"]} \
    path \"auth/token/revoke-accessor\" {capabilities=[\"update\"]} \
    path \"sys/leases/renew\" {capabilities=[\"update\"]} path \"sys/leases/revoke\" {capabilities=[\"update\"]}";

const NAMED: &str = r#"
[credentials.named.db]
kind = "database"
path = "database/creds/reports"
agents = ["coder"]
initiators = ["alice"]
max_ttl_seconds = 60
files = { username = "db-user", password = "db-password" }
[credentials.named.app]
kind = "kv2"
path = "secret/data/app"
agents = ["*"]
initiators = ["alice"]
[credentials.named.cert]
kind = "pki"
path = "pki/issue/app"
agents = ["coder"]
initiators = ["alice"]
parameters = { common_name = "{agent}.{initiator}" }
files = { certificate = "cert.pem", private_key = "key.pem", serial_number = "serial" }
[credentials.named.vault]
kind = "token"
path = "auth/token/create"
policies = ["app"]
agents = ["coder"]
initiators = ["alice"]
"#;

/// OpenBao, PostgreSQL, and the daemon's configuration for them.
struct Servers {
    bao: Child,
    tables: String,
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.bao.kill();
    }
}

fn sh(command: &str) -> Result<String> {
    let out = output(Command::new("bash").args(["-ec", command]), seconds(180))?;
    ensured!(
        out.status.success(),
        "{command}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// One call with the root token, with another one, or with none.
pub(super) fn api(token: &str, method: &str, path: &str, body: &Value) -> Result<Value> {
    let (header, url, body) = (format!("X-Vault-Token: {token}"), format!("{ADDRESS}/v1/{path}"), body.to_string());
    let ca = format!("{PLACE}/vault-ca.pem");
    let mut command = Command::new("curl");
    command.args(["-sS", "--cacert", &ca, "-X", method, &url]);
    if !token.is_empty() {
        command.args(["-H", &header]);
    }
    if method != "GET" {
        command.args(["-d", &body]);
    }
    let out = output(&mut command, seconds(60))?;
    ensured!(out.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&out.stderr));
    match out.stdout.is_empty() {
        true => Ok(Value::Null),
        false => serde_json::from_slice(&out.stdout).with_context(|| format!("{method} {path}: no JSON")),
    }
}

pub(super) fn made(method: &str, path: &str, body: &Value) -> Result<Value> {
    let answer = api("root", method, path, body)?;
    ensured!(answer["errors"].is_null(), "{method} {path}: {answer}");
    Ok(answer)
}

impl Servers {
    fn start() -> Result<Self> {
        sh(&format!(
            "mkdir -p {PLACE}; cd /; install -d -o agent -g agent /tmp/pg; bin=$(ls -d /usr/lib/postgresql/*/bin); \
             as=\"setpriv --reuid agent --regid agent --clear-groups env LC_ALL=C HOME=/tmp\"; \
             $as $bin/initdb -A trust -U postgres -N -D /tmp/pg/data > /dev/null; \
             $as $bin/pg_ctl -w -t 120 -D /tmp/pg/data -l /tmp/pg/log -o '-p {PORT} -c unix_socket_directories=/tmp/pg -c fsync=off' start"
        ))?;
        // Who is asked for a password is asked over the network.
        sh(
            "printf 'local all postgres trust\\nhost all postgres 127.0.0.1/32 trust\\nhost all all 127.0.0.1/32 scram-sha-256\\n' \
            > /tmp/pg/data/pg_hba.conf; kill -HUP $(head -1 /tmp/pg/data/postmaster.pid)",
        )?;
        let log = std::fs::File::create("/run/bao.log")?;
        let tls = format!("-dev-tls-cert-dir={PLACE}");
        let args =
            ["server", "-dev", "-dev-tls", &tls, "-dev-root-token-id=root", "-dev-listen-address=127.0.0.1:8200"];
        let mut command = Command::new(BAO);
        command.args(args).env("HOME", PLACE).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let bao = command.spawn().context("starting OpenBao")?;
        let mut servers = Self { bao, tables: String::new() };
        until_true("OpenBao answers", seconds(180), || {
            Ok(api("root", "GET", "sys/health", &Value::Null).is_ok_and(|health| health["sealed"] == false))
        })?;
        servers.tables = fill()?;
        Ok(servers)
    }

    fn still(&self, still: bool) -> Result<()> {
        let signal = if still { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        guest::signal(i32::try_from(self.bao.id())?, signal)
    }
}

/// What the provider holds, and what the daemon is told of it.
fn fill() -> Result<String> {
    made("POST", "sys/auth/approle", &json!({"type": "approle"}))?;
    made("POST", "secret/data/app", &json!({"data": {"key": "kept-value-0815"}}))?;
    made("PUT", "sys/policies/acl/guard", &json!({"policy": POLICY}))?;
    made("PUT", "sys/policies/acl/app", &json!({"policy": "path \"secret/data/app\" {capabilities=[\"read\"]}"}))?;
    made("POST", "sys/mounts/pki", &json!({"type": "pki"}))?;
    made("POST", "pki/root/generate/internal", &json!({"common_name": "test", "ttl": "20h"}))?;
    made(
        "POST",
        "pki/roles/app",
        &json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec", "key_bits": 256}),
    )?;
    made("POST", "sys/mounts/database", &json!({"type": "database"}))?;
    let url = format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{PORT}/postgres?sslmode=disable");
    let plugin = json!({"plugin_name": "postgresql-database-plugin", "allowed_roles": "reports", "connection_url": url,
        "username": "postgres", "password": "unused"});
    made("POST", "database/config/pg", &plugin)?;
    let create = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'";
    let role = json!({"db_name": "pg", "creation_statements": [create], "default_ttl": "30m", "max_ttl": "1h"});
    made("POST", "database/roles/reports", &role)?;
    let role = json!({"token_policies": ["guard", "app"], "token_ttl": "2m", "token_max_ttl": "1h"});
    made("POST", "auth/approle/role/guard", &role)?;
    let secret = made("POST", "auth/approle/role/guard/secret-id", &json!({}))?;
    let file = format!("{PLACE}/secret-id");
    std::fs::write(&file, secret["data"]["secret_id"].as_str().context("no secret id")?)?;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let role = made("GET", "auth/approle/role/guard/role-id", &Value::Null)?;
    let role_id = role["data"]["role_id"].as_str().context("no role id")?;
    Ok(format!(
        "[credentials]\naddress = \"{ADDRESS}\"\nca = \"{PLACE}/vault-ca.pem\"\nrole_id = \"{role_id}\"\n\
         secret_id_file = \"{PLACE}/secret-id\"\n{NAMED}"
    ))
}

/// Whether a database user may log in, in the database's own words.
pub(super) fn logs_in(user: &str, password: &str) -> Result<bool> {
    let url = format!("host=127.0.0.1 port={PORT} dbname=postgres user={user}");
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec $(ls -d /usr/lib/postgresql/*/bin)/psql -wAtc 'select 1' \"$0\"", &url])
        .env("PGPASSWORD", password);
    let out: Output = output(&mut command, seconds(60))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let refused = said.contains("authentication failed") || said.contains("does not exist");
    ensured!(out.status.success() || refused, "psql: {said}");
    Ok(out.status.success())
}

pub(super) fn what(records: &[Value], kind: &str, name: &str) -> usize {
    ctl::of_kind(records, kind).iter().filter(|r| r["body"]["name"] == name).count()
}

/// All of it.
pub fn run() -> Result<()> {
    crate::attacks::install()?;
    let servers = Servers::start()?;
    let people = People::prepare()?;
    let hold = "[hold]\nmax_seconds = 12\nreview_deadline_seconds = 20\ncollector_grace_seconds = 3";
    let tables = format!("{hold}\n{}\n{}", people.tables(), servers.tables);
    guest::restart_whole("long_lived = \"record\"", &tables)?;
    people.run()?;
    refusals(&servers)?;
    handed_over()?;
    lost_daemon(&servers)?;
    ctl::verify().map(|_| ())
}

/// Who may not have it, and a provider that is away: the session does not start, and says why.
fn refusals(servers: &Servers) -> Result<()> {
    let ask = |user: &str, name: &str| -> Result<String> {
        let mut command = session::as_user(user, "/tmp");
        command.args([
            "guardctl",
            "--config",
            "/etc/guard/guardctl.toml",
            "run",
            "--agent",
            "coder",
            "--credential",
            name,
        ]);
        let out = output(command.args(["--", "true"]), seconds(90))?;
        ensured!(!out.status.success(), "{name} was given to {user}");
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let said = ask("bob", "db")?;
    ensure(said.contains("credential db: bob is not among the initiators"), &said)?;
    let said = ask("alice", "none")?;
    ensure(said.contains("no credential `none`"), &said)?;
    servers.still(true)?;
    let said = ask("alice", "app");
    servers.still(false)?;
    let said = said?;
    ensure(said.contains("does not answer"), &said)
}

/// In the session: files of the right form. Outside, in another session, in records, log and kept files: nothing.
fn handed_over() -> Result<()> {
    let mut running = shown(&["db", "app", "cert", "vault"], &[])?;
    let stdin = running.stdin().context("no stdin")?;
    running.line("ready", seconds(60))?;
    let out = running.out();
    let value = |name: &str| -> Result<String> {
        let start = format!("value {name} ");
        let found = out.lines().find_map(|l| l.strip_prefix(&start)).map(str::to_owned);
        found.with_context(|| format!("no {name}: {out}"))
    };
    let said = |line: &str| out.lines().filter(|l| l.starts_with(line)).count();
    ensure(said("folder 750 0 /run/guard/credentials") == 1 && said("file 440 0 ") == 7, &out)?;
    ensure(
        said("create errno 30") + said("create errno 13") == 1
            && said("write errno 30") + said("write errno 13") == 7
            && said("environment clean") == 1,
        &out,
    )?;
    let mount = out.lines().find(|l| l.starts_with("mount tmpfs ")).unwrap_or_default();
    ensure(["ro", "nosuid", "nodev", "noexec", "size=1024k"].iter().all(|flag| mount.contains(flag)), mount)?;
    let (key, user, password) = (value("app.key")?, value("db-user")?, value("db-password")?);
    let (token, serial) = (value("vault.token")?, value("serial")?);
    ensure(key == "kept-value-0815" && logs_in(&user, &password)?, format!("key {key}, user {user}"))?;
    ensure(value("key.pem")?.contains("PRIVATE KEY") && value("cert.pem")?.contains("CERTIFICATE"), "the certificate")?;
    ensure(
        api(&token, "GET", "secret/data/app", &Value::Null)?["data"]["data"]["key"] == "kept-value-0815",
        "the token",
    )?;
    invisible(&running.id, &[&key, &password, &token])?;
    drop(stdin);
    let ended = running.wait(seconds(60))?;
    revoked(&ended.id, (&user, &password), &token, &serial)?;
    // Now that the session's end is recorded too.
    nowhere(&[&key, &password, &token])
}

/// A session that shows what it has, and what it finds at these places.
fn shown(names: &[&str], places: &[&str]) -> Result<Session> {
    let options: Vec<&str> = names.iter().flat_map(|name| ["--credential", name]).collect();
    let start = Start { ttl: "3m", options: &options, cwd: "/tmp", stdin: true, ..ALICE };
    Session::attack(&start, "credentials.py", places)
}

fn invisible(id: &str, secrets: &[&str]) -> Result<()> {
    let pids = std::fs::read_to_string(format!("/sys/fs/cgroup/guard/s-{id}/cgroup.procs"))?;
    let pid = pids.lines().next().context("no process")?;
    let inside = format!("/proc/{pid}/root{FOLDER}");
    ensure(std::fs::read_dir(FOLDER)?.next().is_none(), "the files are in the host's namespace")?;
    let mut neighbour = session::as_user("alice", "/");
    let look = format!("ls {FOLDER} {inside} 2>&1; cat {inside}/* 2>&1");
    let out = output(neighbour.args(["bash", "-c", &look]), seconds(30))?;
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure(!secrets.iter().any(|s| seen.contains(s)) && !seen.contains("db-user"), format!("alice outside: {seen}"))?;
    let mut other = shown(&["app"], &[&inside])?;
    other.line("ready", seconds(60))?;
    let out = other.out();
    drop(other.stdin());
    let ended = other.wait(seconds(60))?;
    let closed = out.lines().any(|l| l.starts_with(&format!("seen {inside} errno")));
    ensure(ended.code == 0 && out.contains("value app.key") && !out.contains("db-user") && closed, &out)
}

fn revoked(id: &str, (user, password): (&str, &str), token: &str, serial: &str) -> Result<()> {
    until_true("the database refuses the user", seconds(60), || Ok(!logs_in(user, password)?))?;
    until_true("the token is none any more", seconds(30), || {
        Ok(!api(token, "GET", "secret/data/app", &Value::Null)?["errors"].is_null())
    })?;
    let records = until("all is revoked, on the record", seconds(60), || {
        let records = ctl::records(id)?;
        let all = ["db", "cert", "vault"].iter().all(|name| what(&records, "credential_revoked", name) == 1);
        Ok(Some(records).filter(|_| all))
    })?;
    let cert = made("GET", &format!("pki/cert/{serial}"), &Value::Null)?;
    ensure(cert["data"]["revocation_time"].as_i64().is_some_and(|t| t > 0), format!("certificate: {cert}"))?;
    ensure(["db", "app", "cert", "vault"].iter().all(|name| what(&records, "credential_issued", name) == 1), "issued")?;
    let db =
        ctl::of_kind(&records, "credential_issued").into_iter().find(|r| r["body"]["name"] == "db").context("db")?;
    // The provider's role gives half an hour; the configuration, one minute.
    ensure(db["body"]["ttl_ns"].as_u64().is_some_and(|ttl| ttl > 0 && ttl <= 60_000_000_000), db)?;
    ensure(what(&records, "credential_expired", "app") == 1, "nothing says that the stored value stays good")?;
    until_true("no lease is kept", seconds(20), || {
        Ok(std::fs::read_dir("/var/lib/guard/agent/credentials")?.next().is_none())
    })
}

/// Journal, kept files, logs of daemon and collector, the collector's log: none has the secret.
fn nowhere(secrets: &[&str]) -> Result<()> {
    ctl::shipped()?;
    for secret in secrets {
        let mut grep = Command::new("grep");
        grep.args(["-rlaF", "--", secret, "/var/lib/guard", guest::AGENT_LOG, guest::COLLECTOR_LOG, "/etc/guard"]);
        let out = output(&mut grep, seconds(120))?;
        let found = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure(out.status.code() == Some(1), format!("a secret is in {found}"))?;
    }
    Ok(())
}

/// A daemon that dies leaves the names of leases: the next one renews for a session that lives and revokes for one that ended. A
/// provider that is away then is an alert, and is asked again.
fn lost_daemon(servers: &Servers) -> Result<()> {
    let mut live = Live::start_with("5m", &["--credential", "db"])?;
    let id = live.session.id.clone();
    let user = until("the database user is there", seconds(30), || {
        let list = sh(&format!(
            "$(ls -d /usr/lib/postgresql/*/bin)/psql -h /tmp/pg -p {PORT} -U postgres -Atc \
            \"select rolname from pg_roles where rolname like 'v-%' order by oid desc limit 1\""
        ))?;
        Ok(Some(list.trim().to_owned()).filter(|user| !user.is_empty()))
    })?;
    until_true(
        "its lease is renewed",
        seconds(120),
        || Ok(what(&ctl::records(&id)?, "credential_renewed", "db") >= 1),
    )?;
    let down = Down::new()?;
    servers.still(true)?;
    down.up()?;
    live.runs_after(now())?;
    live.say("exit 0")?;
    live.ended()?;
    until_true("an alert", seconds(60), || Ok(!ctl::of_kind(&ctl::records(&id)?, "credential_alert").is_empty()))?;
    let there = || -> Result<bool> {
        let list = sh(&format!(
            "$(ls -d /usr/lib/postgresql/*/bin)/psql -h /tmp/pg -p {PORT} -U postgres -Atc \
            \"select count(*) from pg_roles where rolname = '{user}'\""
        ))?;
        Ok(list.trim() == "1")
    };
    ensure(there()? && Path::new(&format!("/var/lib/guard/agent/credentials/{id}.json")).exists(), "it is forgotten")?;
    servers.still(false)?;
    until_true("the next daemon revokes it", seconds(120), || Ok(!there()?))?;
    // Under emulation it may have ended by itself meanwhile, which is as good and is said as it is.
    until_true("and records it", seconds(60), || {
        let records = ctl::records(&id)?;
        Ok(what(&records, "credential_revoked", "db") + what(&records, "credential_expired", "db") == 1)
    })
}
