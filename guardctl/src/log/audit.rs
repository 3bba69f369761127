//! `guardctl log audit`: a copied log folder, part by part, with nothing but files and a key.
//!
//! It must ask no collector and change nothing, the state file included. Fails: exit code 1 when something is wrong,
//! 78 when nothing is and something could not be checked.

use std::fmt::Write as _;
use std::path::Path;

use guard_log::changes::signer_of;
use guard_log::checkpoint::Checkpoint;
use guard_log::policy::{Cosigned, Policy};
use guard_log::record::Record;
use guard_log::verify::{
    Blobs, DirOptions, DirReport, Form, LogDir, Part, PartReport, Said, Severity, State as PartState,
};
use guard_proto::v1::RecordBody;
use guard_proto::v1::record_body::Body;
use guard_proto::{BLOB_MAX, named_blob};
use prost::Message;
use serde_json::{Value, json};

use super::show::{finding_json, host_json, weight};
use super::state::State;
use super::{Held, cosigned, earlier, key, origin};
use crate::args::AuditArgs;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::table::{Cell, Table, Tone, grow, left, wrap};
use crate::text::escape_str;

/// Runs `log audit`.
pub fn run(args: &AuditArgs, config: &Config, out: &Out) -> Result<()> {
    let audited = Audited::of(args, config)?;
    if out.is_json() {
        out.json(&audited.json())?;
    } else {
        out.print(&audited.text(out.width(), out.color()))?;
    }
    audited.verdict()
}

/// What was audited, and against what.
#[derive(Debug)]
struct Audited {
    report: DirReport,
    /// Where the key came from, if there was one.
    key_from: Option<&'static str>,
    cosigned: Option<Cosigned>,
}

impl Audited {
    fn of(args: &AuditArgs, config: &Config) -> Result<Audited> {
        let dir = LogDir::open(&args.dir).map_err(|e| cannot_open(&args.dir, &e))?;
        let held = Held::of(args.vkey.clone(), args.policy.as_deref())?;
        // What is wrong with the checkpoint itself the audit says.
        let note = dir.note().ok().flatten().unwrap_or_default();
        let origin = origin(&note);
        let state = State::open(config.state_path()?)?;
        let named = match &held.policy {
            Some(policy) => policy.log(&origin).map(|log| log.vkey()),
            None => held.vkey.clone(),
        };
        let key = key::find(named.as_deref(), config, &state, &origin)?;
        let admin = key::admin(args.admin_vkey.as_deref(), config)?;
        let tree = dir.tree();
        let head = key.as_ref().and_then(|key| signer_of(tree, &key.verifier, admin.as_ref(), &note).ok());
        let previous = match (&key, &head) {
            (Some(key), Some((head, _))) => earlier(&state, key, tree, head)?,
            _ => None,
        };
        let blobs = Blobs { max: BLOB_MAX as u64, said };
        let verifier = key.as_ref().map(|key| &key.verifier);
        let mut report =
            dir.audit(&DirOptions { key: verifier, admin: admin.as_ref(), previous, lock: args.lock.clone(), blobs });
        let cosigned = held.policy.as_ref().and_then(|policy| judge_cosignatures(policy, &dir, &note, &mut report));
        Ok(Audited { report, key_from: key.map(|key| key.from), cosigned })
    }

    fn verdict(&self) -> Result<()> {
        let (errors, unchecked) = (self.report.count(Severity::Error), self.report.count(Severity::Unchecked));
        match (errors, unchecked) {
            (0, 0) => Ok(()),
            (0, n) => Err(CliError::new(
                Exit::Config,
                format_args!("log audit: nothing wrong was found, but not all could be checked: {n} reasons"),
            )
            .hint("the lines `not checked` say what is missing: a key (--vkey), a file, or the right to read it")),
            (n, _) => Err(CliError::new(Exit::No, format_args!("log audit failed: {n} findings"))
                .hint("keep the copy as it is, and what was printed: both are evidence")),
        }
    }

    /// One object.
    fn json(&self) -> Value {
        let report = &self.report;
        let head = report.checkpoint.as_ref();
        json!({
            "ok": self.verdict().is_ok(), "form": form(report.form), "origin": head.map(|head| &head.origin),
            "size": head.map(|head| head.size), "root": head.map(|head| hex::encode(head.root)),
            "records": report.entries, "unpublished": report.unpublished,
            "hosts": report.hosts.iter().map(host_json).collect::<Vec<_>>(),
            "key_from": self.key_from, "cosigned": self.cosigned.as_ref().map(cosigned::json),
            "parts": report.parts.iter().map(part_json).collect::<Vec<_>>(),
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        })
    }

    /// For people, in lines of `width` columns.
    fn text(&self, width: usize, color: bool) -> String {
        let mut text = self.head(width, color);
        let mut parts = Table::new(&[left("PART", 12), left("STATE", 11), grow("DETAIL")]);
        for part in &self.report.parts {
            let (word, tone) = shown(part.state);
            parts.row([part.part.word().into(), Cell::toned(word, tone), escape_str(&part.detail).into()]);
        }
        text.push_str(&parts.render(width, color));
        let mut findings = Table::new(&[left("", 11), grow("")]);
        for finding in &self.report.findings {
            let (word, tone) = weight(finding.severity);
            let where_ = format!("{}: {}", finding.what, escape_str(&finding.where_));
            findings.row([Cell::toned(word, tone), where_.into()]);
            findings.below(escape_str(&finding.detail));
        }
        text.push_str(&findings.render(width, color));
        text
    }

    fn head(&self, width: usize, color: bool) -> String {
        let report = &self.report;
        let (word, tone) = match (report.count(Severity::Error), report.count(Severity::Unchecked)) {
            (0, 0) => ("VERIFIED", Tone::Good),
            (0, _) => ("NOT ALL CHECKED", Tone::Warn),
            _ => ("WRONG", Tone::Bad),
        };
        let verdict = if color { tone.paint(word) } else { word.to_owned() };
        let (entries, unpublished) = (report.entries, report.unpublished);
        let mut text = format!("log {verdict}: {entries} records read, {unpublished} more not published yet\n");
        if let Some(head) = &report.checkpoint {
            let named = format!("origin {}, key: {}", escape_str(&head.origin), self.key_from.unwrap_or("none"));
            for line in wrap(&named, width) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{line}");
            }
            let _ = writeln!(text, "size {}\nroot {}", head.size, hex::encode(head.root));
        }
        text
    }
}

fn cannot_open(dir: &Path, error: &std::io::Error) -> CliError {
    CliError::new(Exit::Config, format_args!("cannot audit {}: {error}", dir.display()))
        .hint("name a copy of the collector's log folder (`log.dir` of collector.toml), or an exported log")
}

/// What a record says of a blob. One whose body is not understood says nothing.
fn said(record: &Record) -> Option<Said> {
    let body = RecordBody::decode(record.body()).ok()?.body?;
    if guard_proto::kind_number(&body) != record.header().kind.0 {
        return None;
    }
    match &body {
        Body::BlobErased(erased) => erased.sha256.as_slice().try_into().ok().map(Said::Erases),
        body => named_blob(body)?.try_into().ok().map(Said::Names),
    }
}

/// Puts what a policy says of the cosignatures in the place of what is known without one.
fn judge_cosignatures(policy: &Policy, dir: &LogDir, note: &[u8], report: &mut DirReport) -> Option<Cosigned> {
    let earlier = dir.cosigned().ok().flatten();
    let continued = report.cosigned.clone();
    let continues = |head: &Checkpoint| match &continued {
        Some(known) if known == head => Ok(()),
        _ => Err("the log is not known to continue the cosigned checkpoint".to_owned()),
    };
    let (cosigned, finding) = cosigned::judge(policy, note, earlier.as_deref(), &continues);
    if let Some(part) = report.parts.iter_mut().find(|part| part.part == Part::Cosignatures) {
        match (&finding, &cosigned, part.state) {
            (Some(_), _, _) => (part.state, part.detail) = (PartState::Wrong, "the policy is not met".to_owned()),
            (None, Some(cosigned), PartState::Verified | PartState::Absent) => {
                (part.state, part.detail) = (PartState::Verified, cosigned::text(cosigned).trim_end().to_owned());
            }
            (None, ..) => {}
        }
    }
    report.findings.extend(finding);
    cosigned
}

fn form(form: Form) -> &'static str {
    match form {
        Form::Store => "store",
        Form::Exported => "exported",
    }
}

fn shown(state: PartState) -> (&'static str, Tone) {
    match state {
        PartState::Verified => ("verified", Tone::Good),
        PartState::Wrong => ("WRONG", Tone::Bad),
        PartState::Unchecked => ("not checked", Tone::Warn),
        PartState::Absent => ("absent", Tone::Dim),
    }
}

fn part_json(part: &PartReport) -> Value {
    let state = match part.state {
        PartState::Verified => "verified",
        PartState::Wrong => "wrong",
        PartState::Unchecked => "unchecked",
        PartState::Absent => "absent",
    };
    json!({"part": part.part.word(), "state": state, "detail": part.detail})
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use guard_log::changes::succession::Statement;
    use guard_log::proof::Receipt;
    use guard_log::record::{Epoch, Header, HostId, SessionId};
    use guard_log::signer::{KeyFile, Signers};
    use guard_log::store::{Store, StoreOptions};
    use guard_proto::v1::{BlobErased, CollectorStart, Exec, ExecFacts, KeyRotated, LogSucceeded};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::output::Format;
    use crate::testing;

    /// A collector's folder: 260 published records, two of which name blobs, one of them erased; three not published.
    struct Copied {
        dir: tempfile::TempDir,
        vkey: String,
    }

    fn digest(content: &[u8]) -> Vec<u8> {
        Sha256::digest(content).to_vec()
    }

    fn exec(blob: &[u8]) -> Body {
        let facts = ExecFacts { blob_sha256: digest(blob), ..ExecFacts::default() };
        Body::Exec(Exec { facts: Some(facts), ..Exec::default() })
    }

    fn records() -> Vec<Record> {
        let (mut prev, mut records) = ([0; 32], Vec::new());
        for seq in 0..263 {
            let body = match seq {
                10 => exec(b"kept"),
                11 => exec(b"gone"),
                12 => Body::BlobErased(BlobErased { sha256: digest(b"gone"), ..BlobErased::default() }),
                _ => Body::Exec(Exec::default()),
            };
            let kind = guard_log::record::Kind(guard_proto::kind_number(&body));
            let (host, epoch, session) = (HostId([1; 16]), Epoch([2; 16]), SessionId::NONE);
            let header = Header { version: 1, kind, host, epoch, seq, prev, boot_ns: 0, wall_unix_ns: 0, session };
            let bytes = RecordBody { body: Some(body) }.encode_to_vec();
            let record = Record::seal(&header, &bytes).expect("sealed");
            prev = record.digest();
            records.push(record);
        }
        records
    }

    impl Copied {
        fn new() -> Copied {
            let dir = tempfile::tempdir().expect("folder");
            let at = |name: &str| dir.path().join(name);
            let (data, lock) = (at("data"), at("lock"));
            let options = StoreOptions { dir: data, lock, segment_bytes: 1 << 20, require_real_disk: false };
            let signer = KeyFile::generate("guard.test/log").expect("key");
            let vkey = signer.vkey();
            Store::create(&options, &signer).expect("made");
            let (store, _) = Store::open(options, signer).expect("opened");
            let records = records();
            store.append(records[..260].to_vec()).expect("taken").wait().expect("durable");
            store.publish().expect("published");
            store.append(records[260..].to_vec()).expect("taken").wait().expect("durable");
            store.close();
            let name = hex::encode(digest(b"kept"));
            fs::create_dir_all(at("data/blobs").join(&name[..2])).expect("made");
            fs::write(at("data/blobs").join(&name[..2]).join(&name), "kept").expect("written");
            Copied { dir, vkey }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn args(&self, dir: &str) -> AuditArgs {
            AuditArgs {
                dir: self.at(dir),
                vkey: Some(self.vkey.clone()),
                admin_vkey: None,
                policy: None,
                lock: Some(self.at("lock")),
            }
        }

        fn config(&self) -> Config {
            Config { state: Some(self.at("state.json")), ..Config::default() }
        }

        fn audit(&self, args: &AuditArgs) -> Audited {
            Audited::of(args, &self.config()).expect("audited")
        }

        fn exit(&self, args: &AuditArgs) -> Exit {
            run(args, &self.config(), &Out::new(Format::Json)).map_or_else(|error| error.kind, |()| Exit::Ok)
        }
    }

    fn damaged() -> Copied {
        let copied = Copied::new();
        let bundle = copied.at("data/log/tile/entries/001.p/4");
        let mut bytes = fs::read(&bundle).expect("bundle");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&bundle, bytes).expect("written");
        fs::write(copied.at("data/log/tile/a\n\u{202e}txt.exe"), "x").expect("written");
        fs::remove_dir_all(copied.at("data/blobs")).expect("removed");
        copied
    }

    #[test]
    fn a_copy_that_is_right_is_verified_and_shown_in_eighty_columns() {
        let copied = Copied::new();
        let audited = copied.audit(&copied.args("data"));
        let text = audited.text(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
        assert_eq!(copied.exit(&copied.args("data")), Exit::Ok);
        assert!(!copied.at("state.json").exists());
    }

    #[test]
    fn findings_are_shown_in_eighty_columns_and_cannot_leave_their_line() {
        let copied = damaged();
        let text = copied.audit(&copied.args("data")).text(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(!text.chars().any(|c| c != '\n' && crate::text::is_hidden(c)), "{text}");
        insta::assert_snapshot!(text);
        assert_eq!(copied.exit(&copied.args("data")), Exit::No);
    }

    #[test]
    fn an_audit_has_a_stable_json_form() {
        let copied = damaged();
        insta::assert_snapshot!(testing::pretty(&copied.audit(&copied.args("data")).json()));
    }

    #[test]
    fn without_a_key_all_but_the_signature_is_checked_and_the_exit_code_says_so() {
        let copied = Copied::new();
        let args = AuditArgs { vkey: None, ..copied.args("data") };
        let text = copied.audit(&args).text(80, false);
        assert!(text.contains("signature not checked: no key given"), "{text}");
        assert_eq!(copied.exit(&args), Exit::Config);
        let other = AuditArgs { vkey: Some(KeyFile::generate("guard.test/log").expect("key").vkey()), ..args };
        assert_eq!(copied.exit(&other), Exit::No);
    }

    #[test]
    fn an_exported_log_is_audited_too_and_what_is_no_log_is_refused() {
        let copied = Copied::new();
        assert_eq!(copied.exit(&copied.args("data/log")), Exit::Ok);
        let error = Audited::of(&copied.args("data/wal"), &copied.config()).expect_err("no log");
        assert!(error.kind == Exit::Config && error.message.contains("no log is there"), "{error}");
    }

    /// The record of this body, as the collector writes it into a log of its own.
    fn sealed(body: &Body, seq: u64) -> Record {
        let kind = guard_log::record::Kind(guard_proto::kind_number(body));
        let (host, epoch, session) = (HostId([9; 16]), Epoch([seq as u8 + 9; 16]), SessionId::NONE);
        let header =
            Header { version: 1, kind, host, epoch, seq: 0, prev: [0; 32], boot_ns: 0, wall_unix_ns: 0, session };
        Record::seal(&header, &RecordBody { body: Some(body.clone()) }.encode_to_vec()).expect("sealed")
    }

    /// Puts a change on record, with its receipt.
    fn change(store: &Store, tree: &std::path::Path, key: &KeyFile, body: &Body) {
        let ticket = store.append(vec![sealed(body, store.size())]).expect("taken");
        let leaf = ticket.first_leaf();
        ticket.wait().expect("durable");
        store.publish().expect("published");
        let folder = guard_log::verify::Folder::open(tree).expect("folder");
        let (receipt, record) = Receipt::make(&folder, &key.verifier(), leaf).expect("receipt");
        store.keep_change(receipt, record).expect("kept");
    }

    #[test]
    fn the_first_key_leads_through_a_rotation_and_with_the_admin_key_to_a_successor() {
        let dir = tempfile::tempdir().expect("folder");
        let at = |name: &str| dir.path().join(name);
        let options =
            StoreOptions { dir: at("data"), lock: at("lock"), segment_bytes: 1 << 20, require_real_disk: false };
        let key = |name: &str| KeyFile::generate(name).expect("key");
        let again = |key: &KeyFile| KeyFile::from_skey(&key.skey()).expect("key");
        let [first, second, third] = [key("one.test"), key("one.test"), key("two.test")];
        let admin = key("admin.test");
        Store::create(&options, &first).expect("made");
        let both = Signers::from(again(&first)).with_next(again(&second)).expect("two of one name");
        let (store, _) = Store::open(options.clone(), both).expect("opened");
        let (old_vkey, new_vkey) = (first.vkey(), second.vkey());
        let begun = Body::KeyRotated(KeyRotated { what: "begun".into(), old_vkey, new_vkey });
        change(&store, &at("data/log"), &first, &begun);
        store.close();
        drop(store);
        let (store, _) = Store::open(options.clone(), again(&second)).expect("opened");
        store
            .append(vec![sealed(&Body::CollectorStart(CollectorStart::default()), 1)])
            .expect("taken")
            .wait()
            .expect("durable");
        store.publish().expect("published");
        let args = |vkey: &KeyFile, admin: Option<&KeyFile>| AuditArgs {
            dir: at("data"),
            vkey: Some(vkey.vkey()),
            admin_vkey: admin.map(KeyFile::vkey),
            policy: None,
            lock: Some(at("lock")),
        };
        let config = Config { state: Some(at("state.json")), ..Config::default() };
        let audit = |args: &AuditArgs| Audited::of(args, &config).expect("audited");
        for key in [&first, &second] {
            let audited = audit(&args(key, None));
            assert!(audited.verdict().is_ok(), "{}", audited.text(80, false));
            assert!(audited.text(80, false).contains("key_rotated"));
        }
        assert!(audit(&args(&third, None)).verdict().is_err());

        let (begins, root) = store.head().expect("head");
        let kept = store.published().1;
        drop(store);
        let head = Checkpoint::open(kept.as_bytes(), &second.verifier()).expect("head");
        Store::take_over(&options, &head, &third).expect("taken over");
        let at_head = (head.size, head.root);
        let (new, old) = (third.verifier(), second.verifier());
        let statement = Statement { new, begins, root, old, kept: at_head, seen: at_head };
        let statement = admin.note(&statement.text()).expect("signed").into_bytes();
        let (store, _) = Store::open_successor(options, again(&third), &second.verifier()).expect("opened");
        let body = Body::LogSucceeded(LogSucceeded { statement, kept: kept.into_bytes() });
        change(&store, &at("data/log"), &third, &body);
        store.close();
        let audited = audit(&args(&first, Some(&admin)));
        let text = audited.text(200, false);
        assert!(audited.verdict().is_ok(), "{text}");
        assert!(
            text.contains("the log two.test succeeds one.test from leaf 2 on") && text.contains("signed it"),
            "{text}"
        );
        assert!(audit(&args(&third, None)).text(200, false).contains("not judged without an admin key"));
        // The old key leads there with the admin key alone.
        let text = audit(&args(&first, None)).text(200, false);
        assert!(text.contains("takes the signature of an admin key"), "{text}");
        assert!(audit(&args(&first, Some(&key("admin.test")))).verdict().is_err());
        // `log verify --dir` of the public tree says the same.
        let held = Held { vkey: Some(first.vkey()), admin: Some(admin.verifier()), policy: None };
        let verified = crate::log::verify_folder(&at("data/log"), &held, &config).expect("verified");
        assert!(verified.errors() == 0 && verified.report.signed_by == third.verifier());
    }

    #[test]
    fn a_policy_names_the_key_and_too_few_cosignatures_are_a_finding() {
        let copied = Copied::new();
        let witness = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";
        let audit = |policy: String| {
            fs::write(copied.at("policy"), policy).expect("written");
            let args = AuditArgs { vkey: None, policy: Some(copied.at("policy")), ..copied.args("data") };
            copied.audit(&args).report
        };
        let state = |report: &DirReport| report.parts[1].state;
        assert_eq!(state(&audit(format!("log {}\nquorum none\n", copied.vkey))), PartState::Verified);
        for policy in [
            format!("log {}\nwitness w {witness}\nquorum w\n", copied.vkey),
            format!("log {}\nquorum none\n", KeyFile::generate("x").expect("key").vkey()),
        ] {
            let report = audit(policy);
            assert_eq!((report.parts[1].part, state(&report)), (Part::Cosignatures, PartState::Wrong));
            assert!(report.findings.iter().any(|finding| finding.what == "no_quorum"));
        }
    }
}
