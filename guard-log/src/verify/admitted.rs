//! The one body that an audit reads: the collector's admission that a host's records have a gap (`guard.v1.AdmitFinding`).
//!
//! It must not need the schema of anything else. Fails: what cannot be read admits nothing.

use crate::fields::{Value, each};
use crate::record::{Epoch, HostId, Kind, Record};

/// Field of `guard.v1.RecordBody` that holds it.
const ADMIT_FINDING: u64 = Kind::ADMIT_FINDING.0 as u64;

/// What the collector said about a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Admission {
    pub(super) host: HostId,
    pub(super) epoch: Epoch,
    pub(super) what: String,
    pub(super) expected_seq: u64,
    pub(super) got_seq: u64,
}

/// Reads an admission.
pub(super) fn parse(record: &Record) -> Option<Admission> {
    if record.header().kind != Kind::ADMIT_FINDING {
        return None;
    }
    let mut found = None;
    each(record.body(), |number, value| {
        if let (ADMIT_FINDING, Value::Bytes(bytes)) = (number, value) {
            found = Some(bytes.to_vec());
        }
    })?;
    let mut admission = Admission::default();
    each(&found?, |number, value| match (number, value) {
        (1, Value::Bytes(bytes)) => admission.host = HostId::from_slice(bytes).unwrap_or_default(),
        (2, Value::Bytes(bytes)) => admission.epoch = Epoch::from_slice(bytes).unwrap_or_default(),
        (3, Value::Bytes(bytes)) => admission.what = String::from_utf8_lossy(bytes).into_owned(),
        (4, Value::Number(number)) => admission.expected_seq = number,
        (5, Value::Number(number)) => admission.got_seq = number,
        _ => {}
    })?;
    Some(admission)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{Header, SessionId};

    pub(super) fn seal(body: &[u8]) -> Record {
        let header = Header {
            version: 1,
            kind: Kind::ADMIT_FINDING,
            host: HostId([9; 16]),
            epoch: Epoch([9; 16]),
            seq: 0,
            prev: [0; 32],
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SessionId::NONE,
        };
        Record::seal(&header, body).unwrap()
    }

    #[test]
    fn reads_what_protobuf_writes() {
        let mut inner = vec![0x0a, 16];
        inner.extend([1; 16]);
        inner.extend([0x12, 16]);
        inner.extend([2; 16]);
        inner.extend([0x1a, 3]);
        inner.extend(b"gap");
        inner.extend([0x20, 7, 0x28, 0xac, 0x02, 0x32, 1, b'd', 0x39, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut body = vec![0x8a, 0x02, inner.len() as u8];
        body.extend(&inner);
        let found = parse(&seal(&body)).unwrap();
        let expected = Admission {
            host: HostId([1; 16]),
            epoch: Epoch([2; 16]),
            what: "gap".into(),
            expected_seq: 7,
            got_seq: 300,
        };
        assert_eq!(found, expected);
        assert_eq!(parse(&seal(&body[..body.len() - 1])), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&seal(&body));
        }
    }
}
