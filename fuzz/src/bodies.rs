//! The collector's quick look into a record's body, and that of an audit, held against the decoder of prost.
//!
//! What they read to its end the decoder must be able to read too: else two readers would see two records.

use prost::Message as _;

use crate::targets::Target;

#[path = "../../guard-log/src/fields.rs"]
mod fields;
#[path = "../../guard-collector/src/wire.rs"]
mod wire;

/// All of them.
pub const ALL: &[Target] = &[Target { name: "bodies", seeds, run: bodies }];

fn bodies(data: &[u8]) {
    let fields: Result<Vec<_>, _> = wire::Fields::of(data).collect();
    // A message without fields of its own: the decoder checks the form of all that it skips.
    if fields.is_ok() || fields::each(data, |_, _| {}).is_some() {
        assert!(<()>::decode(data).is_ok(), "the decoder says: {:?}", <()>::decode(data));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let nested = [0x12, 6, 0x0a, 2, b'h', b'i', 0x10, 7];
    vec![
        [&[0x08, 0x96, 0x01], nested.as_slice(), &[0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
        vec![0xaa, 0x02, 3, 8, 0x80, 0x02],
        vec![0x0b, 0x08, 1, 0x0c],
    ]
}
