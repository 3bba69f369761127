//! The fields of a protobuf message, for the two bodies that an audit reads.
//!
//! It must not know what they mean. Fails: bytes that are no message are `None`.

/// Highest number of a field that the format has; the generated decoder takes no other.
const NUMBER_MAX: u64 = (1 << 29) - 1;

/// A field that is read; others are passed over.
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Walks the fields of a protobuf message; `None` if it is not one.
pub(crate) fn each<'a>(mut bytes: &'a [u8], mut call: impl FnMut(u64, Value<'a>)) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        if !(1..=NUMBER_MAX).contains(&(tag >> 3)) {
            return None;
        }
        match tag & 7 {
            0 => call(tag >> 3, Value::Number(varint(&mut bytes)?)),
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                call(tag >> 3, Value::Bytes(value));
                bytes = rest;
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        // Of the tenth one bit is left.
        if place == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f).checked_shl(7 * place)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_generated_decoder_refuses_is_no_message_here() {
        let longest = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let mut numbers = Vec::new();
        let read = each(&longest, |number, value| {
            if let Value::Number(value) = value {
                numbers.push((number, value));
            }
        });
        assert_eq!((read, numbers), (Some(()), vec![(1, u64::MAX)]));
        let mut longer = longest;
        longer[10] = 2;
        for message in [&longer[..], &[0x00, 1], &[0x80, 0x80, 0x80, 0x80, 0x10, 1], &[0x12, 5, 1], &[0x0b]] {
            assert!(each(message, |_, _| {}).is_none(), "{message:?}");
        }
    }
}
