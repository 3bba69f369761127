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
    let quick: Result<Vec<_>, _> = wire::Fields::of(data).collect();
    let mut own = Vec::new();
    let whole = fields::each(data, |number, value| {
        own.push(match value {
            fields::Value::Number(value) => (number, wire::Value::Number(value)),
            fields::Value::Bytes(value) => (number, wire::Value::Bytes(value)),
        });
    });
    // A message without fields of its own: the decoder checks the form of all that it skips.
    if quick.is_ok() || whole.is_some() {
        assert!(<()>::decode(data).is_ok(), "the decoder says: {:?}", <()>::decode(data));
    }
    if let Ok(quick) = quick {
        let quick = quick.into_iter().filter(|(_, value)| *value != wire::Value::Fixed);
        let quick: Vec<_> = quick.map(|(number, value)| (u64::from(number), value)).collect();
        assert_eq!((whole, own), (Some(()), quick));
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
