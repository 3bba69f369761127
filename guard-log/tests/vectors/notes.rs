//! Signed notes, checkpoints and cosigners' keys: those of Go's `sumdb/note`, of its checksum database, of `transparency-dev/formats`
//! and of the specifications.

use guard_log::checkpoint::Checkpoint;
use guard_log::cosignature::Cosigner;
use guard_log::note::{NoteError, Verifier, open_lines};
use guard_log::signer::KeyFile;

use crate::data::{json, list, number, string};

#[test]
fn notes_of_sumdb_are_opened_by_each_of_their_keys() {
    let all = json("notes/notes.json");
    let text = string(&all["text"]);
    let names = ["PeterNeumann", "EnochRoot"];
    let signatures: String = names.iter().map(|name| string(&all["signatures"][name])).collect();
    for name in names {
        let key = Verifier::parse(string(&all["keys"][name])).unwrap();
        assert_eq!(key.name(), name);
        assert_eq!(key.open(&format!("{text}\n{signatures}")).unwrap(), text);
        // Repeated it counts once and does not hurt; a hundred and one are no note.
        let own = string(&all["signatures"][name]);
        assert_eq!(key.open(&format!("{text}\n{own}{own}{signatures}")).unwrap(), text);
        assert!(matches!(key.open(&format!("{text}\n{}", own.repeat(101))), Err(NoteError::Note(_))));
        assert!(matches!(key.open(&format!("{text}x\n\n{signatures}")), Err(NoteError::Signature { .. })));
    }
    let signer = KeyFile::from_skey(string(&all["skey"])).unwrap();
    assert_eq!(signer.note(text).unwrap(), format!("{text}\n{}", string(&all["signatures"]["PeterNeumann"])));
}

/// Every part of a key and every key with one byte more is none, as the reference demands.
#[test]
fn what_sumdb_takes_for_no_key_is_none() {
    let all = json("notes/notes.json");
    let keys = [string(&all["keys"]["PeterNeumann"]), string(&all["skey"])];
    let reads = |text: &str| Verifier::parse(text).is_ok() || KeyFile::from_skey(text).is_ok();
    for key in keys {
        assert!(reads(key));
        for (from, to) in (0..=key.len()).flat_map(|from| (from..=key.len()).map(move |to| (from, to))) {
            assert!((from, to) == (0, key.len()) || !reads(&key[from..to]), "{:?}", &key[from..to]);
        }
        for place in 0..key.len() {
            let mut bytes = key.as_bytes().to_vec();
            bytes[place] += 1;
            let mangled = String::from_utf8(bytes).unwrap();
            assert!(!reads(&mangled), "{mangled:?}");
        }
    }
    for key in list(&all["not_keys"]) {
        assert!(!reads(string(key)), "{key}");
    }
}

#[test]
fn what_sumdb_takes_for_no_note_is_none() {
    let all = json("notes/notes.json");
    let key = Verifier::parse(string(&all["keys"]["PeterNeumann"])).unwrap();
    for note in list(&all["not_notes"]) {
        assert!(matches!(key.open(string(note)), Err(NoteError::Note(_))), "{note}");
    }
}

/// A head that Go's checksum database signed in production, with lines of other signers after it.
#[test]
fn a_head_of_the_go_checksum_database_is_opened() {
    let all = &json("notes/notes.json")["sum_golang_org"];
    let key = Verifier::parse(string(&all["key"])).unwrap();
    let mut note = string(&all["note"]).to_owned();
    for signature in list(&all["signatures_of_others"]) {
        note += &format!("{}\n", string(signature));
    }
    let head = Checkpoint::parse(&key.open(&note).unwrap()).unwrap();
    assert_eq!((head.origin.as_str(), head.size), ("go.sum database tree", 6_476_701));
    for other in list(&all["keys_of_others"]) {
        assert_eq!(Verifier::parse(string(other)).unwrap().open(&note).unwrap(), head.text());
    }
    // Its name is not the origin, which a checkpoint of ours demands.
    assert!(Checkpoint::open(note.as_bytes(), &key).is_err());
}

#[test]
fn what_formats_takes_for_no_checkpoint_or_cosigner_is_none() {
    let all = json("formats/formats.json");
    for text in list(&all["not_checkpoints"]) {
        assert!(Checkpoint::parse(string(text)).is_err(), "{text}");
    }
    for key in list(&all["not_cosigners"]) {
        assert!(Cosigner::parse(string(key)).is_err(), "{key}");
    }
    assert_eq!(Cosigner::parse(string(&all["cosigner"])).unwrap().name(), "remora.n621.de");
    let note = format!("text\n\n\u{2014} witness {}\n", string(&all["dated"]["signature"]));
    let time = open_lines(&note).unwrap().1[0].signature.first_chunk().map(|time| u64::from_be_bytes(*time));
    assert_eq!(time, Some(number(&all["dated"]["time"])));
}

/// Their keys are not published, so that only the form can be held to them.
#[test]
fn the_examples_of_the_specifications_have_the_form() {
    let all = json("c2sp/examples.json");
    let note = string(&all["note"]);
    let (text, lines) = open_lines(note).unwrap();
    // The text holds an empty line; the last one in the note ends it.
    assert!(text.ends_with("\n\ned è subito sera.\n"));
    assert_eq!((lines[0].name, lines[0].signature.len()), ("quasimodo.example/salvatore", 64));
    let signed = Checkpoint::open_unsigned(string(&all["checkpoint"]).as_bytes()).unwrap();
    let cosigned = string(&all["cosigned"]);
    assert_eq!(Checkpoint::open_unsigned(cosigned.as_bytes()).unwrap(), signed);
    assert_eq!((signed.origin.as_str(), signed.size), ("example.com/behind-the-sofa", 20_852_163));
    let (text, lines) = open_lines(cosigned).unwrap();
    assert_eq!((text, lines.len()), (signed.text().as_str(), 2));
    assert_eq!((lines[1].name, lines[1].signature.len()), ("witness.example.com/w1", 72));
    let time = lines[1].signature.first_chunk().map(|time| u64::from_be_bytes(*time));
    assert_eq!(time, Some(number(&all["cosigned_time"])));
}
