//! What the index wants of a record: a few columns, found without parsing the rest of a body.
//!
//! Execs, their outcomes and acts are nearly all records; their bodies are looked at in place. Every other kind, and whatever is
//! not plain there, is parsed by the generated decoder, which a test compares with. It must not look at anything but the record.
//! Fails: a body that is not understood is [`View::default`].

use std::borrow::Cow;

use guard_log::record::{Kind, Record};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{ExecFacts, FileFact, Identity, Verdict};

use crate::body;
use crate::wire::{Fields, Odd, Value};

/// Whose the record is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The agent's name.
    pub agent: Cow<'a, str>,
    /// Its running copy.
    pub instance: Cow<'a, str>,
    /// Who asked for the work.
    pub initiator: Cow<'a, str>,
}

/// The columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View<'a> {
    /// From the identity chain in the body.
    pub owner: Option<Owner<'a>>,
    /// The kernel's number of the exec.
    pub exec: Option<u64>,
    /// Path of the program, as recorded.
    pub program: Cow<'a, [u8]>,
    /// Category of the verdict.
    pub category: Cow<'a, str>,
    /// Raw disposition.
    pub disposition: i32,
    /// Reviewer.
    pub reviewer: Cow<'a, str>,
    /// Digest of the blob that it names, or nothing.
    pub blob: Cow<'a, [u8]>,
    /// The whole body, of kinds of which more is wanted.
    pub rest: Option<Body>,
    /// Whether the body was understood at all.
    pub understood: bool,
}

/// Takes what is wanted.
pub fn view(record: &Record) -> View<'_> {
    let kind = record.header().kind;
    if let Some(layout) = layout(kind)
        && let Ok(view) = quick(record.body(), kind, &layout)
    {
        return view;
    }
    body::parse(record).map(whole).unwrap_or_default()
}

/// Field numbers of `record.proto`; 0 for what a kind does not have.
#[derive(Default)]
struct Layout {
    facts: u32,
    exec: u32,
    verdict: u32,
    disposition: u32,
    reviewer: u32,
    program: u32,
}

fn layout(kind: Kind) -> Option<Layout> {
    let none = Layout::default();
    match kind {
        Kind::EXEC => Some(Layout { facts: 2, verdict: 3, disposition: 4, reviewer: 9, ..none }),
        Kind::EXEC_OUTCOME => Some(Layout { exec: 2, disposition: 3, ..none }),
        Kind::EXEC_UNJUDGED => Some(Layout { exec: 2, program: 7, disposition: 14, ..none }),
        Kind::GUARD_REFUSAL | Kind::GUARD_OBSERVATION => Some(Layout { program: 17, ..none }),
        _ => None,
    }
}

fn text(value: Value<'_>) -> Result<Cow<'_, str>, Odd> {
    match value {
        Value::Bytes(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| Odd),
        Value::Number(_) | Value::Fixed => Err(Odd),
    }
}

fn bytes(value: Value<'_>) -> Result<&[u8], Odd> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Number(_) | Value::Fixed => Err(Odd),
    }
}

fn number(value: Value<'_>) -> Result<u64, Odd> {
    match value {
        Value::Number(number) => Ok(number),
        Value::Bytes(_) | Value::Fixed => Err(Odd),
    }
}

/// A message that may stand there once: parts of it would be merged.
fn once<'a>(seen: &mut bool, value: Value<'a>) -> Result<&'a [u8], Odd> {
    if std::mem::replace(seen, true) { Err(Odd) } else { bytes(value) }
}

fn quick<'a>(body: &'a [u8], kind: Kind, layout: &Layout) -> Result<View<'a>, Odd> {
    let mut fields = Fields::of(body);
    let (number, value) = fields.next().ok_or(Odd)??;
    if number != u32::from(kind.0) || fields.next().is_some() {
        return Err(Odd);
    }
    let mut view = View { understood: true, ..View::default() };
    let (mut owners, mut facts, mut verdicts) = (false, false, false);
    if layout.exec != 0 {
        view.exec = Some(0);
    }
    for field in Fields::of(bytes(value)?) {
        let (n, value) = field?;
        match n {
            1 => view.owner = Some(owner(once(&mut owners, value)?)?),
            n if n == layout.facts => {
                (view.exec, view.program, view.blob) = facts_of(once(&mut facts, value)?)?;
            }
            n if n == layout.verdict => view.category = category_of(once(&mut verdicts, value)?)?,
            n if n == layout.exec => view.exec = Some(self::number(value)?),
            // As the generated decoder cuts it.
            n if n == layout.disposition => view.disposition = self::number(value)? as i32,
            n if n == layout.reviewer => view.reviewer = text(value)?,
            n if n == layout.program => view.program = Cow::Borrowed(bytes(value)?),
            _ => {}
        }
    }
    Ok(view)
}

fn owner(message: &[u8]) -> Result<Owner<'_>, Odd> {
    let mut owner = Owner::default();
    for field in Fields::of(message) {
        match field? {
            (2, value) => owner.agent = text(value)?,
            (3, value) => owner.instance = text(value)?,
            (4, value) => owner.initiator = text(value)?,
            _ => {}
        }
    }
    Ok(owner)
}

fn category_of(message: &[u8]) -> Result<Cow<'_, str>, Odd> {
    let mut category = Cow::default();
    for field in Fields::of(message) {
        if let (2, value) = field? {
            category = text(value)?;
        }
    }
    Ok(category)
}

type Facts<'a> = (Option<u64>, Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Number, program and blob.
fn facts_of(message: &[u8]) -> Result<Facts<'_>, Odd> {
    let (mut exec, mut first, mut program, mut blob) = (0, None, None, &[][..]);
    for field in Fields::of(message) {
        match field? {
            (1, value) => exec = number(value)?,
            (24, value) => blob = bytes(value)?,
            (13, value) => {
                let (path, role) = file(bytes(value)?)?;
                first.get_or_insert(path);
                if role == PROGRAM {
                    program.get_or_insert(path);
                }
            }
            _ => {}
        }
    }
    Ok((Some(exec), Cow::Borrowed(program.or(first).unwrap_or_default()), Cow::Borrowed(blob)))
}

/// The role of the file whose path is the exec's program; the first file's where none has it.
const PROGRAM: &[u8] = b"program";

fn file(message: &[u8]) -> Result<(&[u8], &[u8]), Odd> {
    let (mut path, mut role): (&[u8], &[u8]) = (b"", b"");
    for field in Fields::of(message) {
        match field? {
            (1, value) => path = bytes(value)?,
            (6, value) => role = bytes(value)?,
            _ => {}
        }
    }
    Ok((path, role))
}

fn program(facts: Option<&ExecFacts>) -> Cow<'static, [u8]> {
    let files = facts.map_or(&[][..], |f| f.files.as_slice());
    let program = files.iter().find(|f: &&FileFact| f.role.as_bytes() == PROGRAM).or(files.first());
    Cow::Owned(program.map(|f| f.path.clone()).unwrap_or_default())
}

fn owned(identity: &Identity) -> Owner<'static> {
    let text = |text: &String| Cow::Owned(text.clone());
    Owner { agent: text(&identity.agent), instance: text(&identity.instance), initiator: text(&identity.initiator) }
}

fn whole(body: Body) -> View<'static> {
    let category = |v: Option<&Verdict>| Cow::Owned(v.map(|v| v.category.clone()).unwrap_or_default());
    let owner = body::identity(&body).map(owned);
    let mut view = match &body {
        Body::Exec(b) => View {
            exec: b.facts.as_ref().map(|f| f.exec_id),
            program: program(b.facts.as_ref()),
            category: category(b.verdict.as_ref()),
            disposition: b.disposition,
            reviewer: Cow::Owned(b.reviewer.clone()),
            ..View::default()
        },
        Body::ExecRequest(b) => View {
            exec: b.facts.as_ref().map(|f| f.exec_id),
            program: program(b.facts.as_ref()),
            category: category(b.verdict.as_ref()),
            ..View::default()
        },
        Body::ExecDecision(b) => View {
            exec: Some(b.exec_id),
            disposition: b.disposition,
            reviewer: Cow::Owned(b.reviewer.clone()),
            ..View::default()
        },
        Body::ExecOutcome(b) => View { exec: Some(b.exec_id), disposition: b.disposition, ..View::default() },
        Body::ExecUnjudged(b) => View {
            exec: Some(b.exec_id),
            program: Cow::Owned(b.path.clone()),
            disposition: b.disposition,
            ..View::default()
        },
        Body::GuardRefusal(b) | Body::GuardObservation(b) => {
            View { program: Cow::Owned(b.program.clone().into_bytes()), ..View::default() }
        }
        Body::ReviewDecision(b) => View { reviewer: Cow::Owned(b.reviewer.clone()), ..View::default() },
        Body::DecisionFinding(b) => View { reviewer: Cow::Owned(b.reviewer.clone()), ..View::default() },
        _ => View::default(),
    };
    (view.owner, view.understood) = (owner, true);
    view.blob = Cow::Owned(guard_proto::named_blob(&body).map(<[u8]>::to_vec).unwrap_or_default());
    // Nothing more is wanted of the kinds that are looked at in place.
    if layout(body::kind_of(&body)).is_none() {
        view.rest = Some(body);
    }
    view
}

#[cfg(test)]
mod tests {
    use guard_log::record::{Epoch, Header, HostId, SessionId};
    use guard_proto::v1::{Exec, ExecOutcome, ExecUnjudged, GuardAct, RecordBody};
    use prost::Message;

    use super::*;

    fn record(kind: Kind, body: &[u8]) -> Record {
        let (host, epoch, session) = (HostId([1; 16]), Epoch([2; 16]), SessionId::NONE);
        let header =
            Header { version: 1, kind, host, epoch, seq: 0, prev: [0; 32], boot_ns: 0, wall_unix_ns: 0, session };
        Record::seal(&header, body).expect("sealed")
    }

    fn bodies() -> Vec<Body> {
        let identity = || {
            let text = |t: &str| t.to_owned();
            let owner = (text("coder"), text("spiffe://x/1"), text("alice"));
            Some(Identity { agent: owner.0, instance: owner.1, initiator: owner.2, ..Identity::default() })
        };
        let file = |path: &str, role: &str| FileFact { path: path.into(), role: role.into(), ..FileFact::default() };
        let (argv, blob_sha256) = (vec![b"a".to_vec()], vec![3; 32]);
        let facts = |files| {
            let (argv, blob_sha256) = (argv.clone(), blob_sha256.clone());
            Some(ExecFacts { exec_id: 7, files, argv, blob_sha256, ..ExecFacts::default() })
        };
        let verdict = || Some(Verdict { category: "fs.read".into(), risk: 3, ..Verdict::default() });
        let exec = Exec {
            identity: identity(),
            facts: facts(vec![file("/x.sh", "script"), file("/bin/sh", "program")]),
            verdict: verdict(),
            disposition: 4,
            reviewer: "bob".into(),
            ..Exec::default()
        };
        let refusal = GuardAct { identity: identity(), program: "/bin/rm".into(), ..GuardAct::default() };
        vec![
            Body::Exec(Exec { facts: facts(vec![file("/x.sh", "script")]), ..exec.clone() }),
            Body::Exec(Exec { facts: None, identity: None, disposition: -1, ..exec.clone() }),
            Body::Exec(exec),
            Body::Exec(Exec::default()),
            Body::ExecOutcome(ExecOutcome { identity: identity(), exec_id: 9, disposition: 7, ..Default::default() }),
            Body::ExecOutcome(ExecOutcome::default()),
            Body::ExecUnjudged(ExecUnjudged { path: b"/\xff".to_vec(), exec_id: 1 << 63, ..Default::default() }),
            Body::GuardRefusal(refusal.clone()),
            Body::GuardObservation(refusal),
        ]
    }

    #[test]
    fn the_quick_look_sees_what_the_decoder_sees() {
        for body in bodies() {
            let kind = body::kind_of(&body);
            let record = record(kind, &RecordBody { body: Some(body.clone()) }.encode_to_vec());
            let quick = quick(record.body(), kind, &layout(kind).expect("quick")).expect("plain");
            assert_eq!(quick, whole(body));
            assert_eq!(view(&record), quick);
        }
    }

    #[test]
    fn parts_that_are_merged_go_to_the_decoder() {
        for body in bodies() {
            let kind = body::kind_of(&body);
            let bytes = RecordBody { body: Some(body) }.encode_to_vec();
            let twice = record(kind, &[bytes.as_slice(), &bytes].concat());
            assert_eq!(quick(twice.body(), kind, &layout(kind).expect("quick")), Err(Odd));
            assert_eq!(view(&twice), body::parse(&twice).map(whole).expect("parsed"));
        }
        assert_eq!(view(&record(Kind::EXEC, b"\xff\xff")), View::default());
        assert_eq!(view(&record(Kind::EXEC, b"")), View::default());
    }
}
