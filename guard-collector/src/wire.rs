//! Protobuf fields of a message, one after the other, without copies: for the few that are wanted of every record.
//!
//! It must not decide what a message means: readers that meet anything but plain fields take the generated decoder instead.
//! Fails: [`Fields`] ends with `Err(Odd)` on whatever it does not know, groups and truncation among it.

/// Highest number of a field that the format has; the generated decoder takes no other.
const NUMBER_MAX: u32 = (1 << 29) - 1;

/// Something but plain fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Odd;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, as a varint.
    Number(u64),
    /// Bytes, a string or a message.
    Bytes(&'a [u8]),
    /// Eight or four bytes, which no field that is read here has.
    Fixed,
}

/// The fields of a message in order.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Of these bytes.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Result<u64, Odd> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Odd)?;
            self.0 = rest;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return Err(Odd);
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Odd)
    }

    fn bytes(&mut self, length: u64) -> Result<&'a [u8], Odd> {
        let length = usize::try_from(length).map_err(|_| Odd)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Odd)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Odd> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..=NUMBER_MAX).contains(n)).ok_or(Odd)?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return Err(Odd),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Odd>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_fields_come_in_order() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8];
        let fields: Result<Vec<_>, Odd> = Fields::of(&message).collect();
        let expected = vec![(1, Value::Number(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed), (4, Value::Fixed)];
        assert_eq!(fields, Ok(expected));
    }

    #[test]
    fn what_is_odd_ends_it() {
        // The last one has a number that the decoder does not take: two readers would see two records.
        let number = &[0x80, 0x80, 0x80, 0x80, 0x10, 1];
        for message in [&[0x0b][..], &[0x12, 5, 1], &[0x00, 1], &[0xff; 11], &[0x08], &[0x09, 1, 2], number] {
            assert!(Fields::of(message).any(|f| f == Err(Odd)), "{message:?}");
            assert!(Fields::of(message).count() < 3);
        }
    }
}
