//! A full block as one piece of bytes, column by column: what a row in SQLite costs is paid once for [`super::BLOCK`] leaves.
//!
//! A column is a list of its distinct values with one or two bytes for each leaf, or, where nearly all values differ, the
//! differences from leaf to leaf. A question reads only the columns that it is about. Every length and number that is read is
//! checked: a file may be damaged. Fails: [`Damaged`], which the index answers with its own name and what to do.

use std::ops::Range;

use super::{COLUMNS, Row, Wanted};

/// Columns of a block: kind, wall time, session, then those of [`super::Column`].
const ALL: usize = 3 + COLUMNS.len();
const KIND: usize = 0;
const WALL: usize = 1;
const SESSION: usize = 2;
/// Distinct values from which on differences are shorter than a list and two bytes for each leaf.
const LIST_MAX: usize = 1024;

const LIST: u8 = 0;
const DIFFERENCES: u8 = 1;

/// The bytes are not those of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Rows of consecutive leaves, and for each column of [`super::Column`] and the session (last) what occurs in it.
pub fn pack(rows: &[Row]) -> (Vec<u8>, Vec<(u8, i64)>) {
    let mut seen = Vec::new();
    let mut heads = Vec::with_capacity(ALL * 4);
    let mut bytes = Vec::new();
    for column in 0..ALL {
        let values: Vec<i64> = rows.iter().map(|row| value(row, column)).collect();
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if let Some(what) = what(column) {
            seen.extend(distinct.iter().filter(|name| **name != 0).map(|name| (what, *name)));
        }
        let before = bytes.len();
        if distinct.len() <= LIST_MAX {
            list(&mut bytes, &distinct, &values)
        } else {
            differences(&mut bytes, &values)
        }
        heads.extend(u32::try_from(bytes.len() - before).unwrap_or(u32::MAX).to_le_bytes());
    }
    heads.extend(bytes);
    (heads, seen)
}

/// The number under which `seen` knows a column.
fn what(column: usize) -> Option<u8> {
    match column {
        KIND | WALL => None,
        SESSION => Some(super::SESSION),
        other => COLUMNS.get(other - 3).map(|c| *c as u8),
    }
}

fn value(row: &Row, column: usize) -> i64 {
    match column {
        KIND => row.kind.into(),
        WALL => row.wall,
        SESSION => super::session_number(row.session),
        other => row.columns.get(other - 3).copied().unwrap_or_default(),
    }
}

fn list(bytes: &mut Vec<u8>, distinct: &[i64], values: &[i64]) {
    bytes.push(LIST);
    put(bytes, distinct.len() as u64);
    differences_of(bytes, distinct);
    let place = |v: &i64| distinct.binary_search(v).unwrap_or_default();
    match distinct.len() {
        1 => {}
        2..=256 => bytes.extend(values.iter().map(|v| place(v) as u8)),
        _ => values.iter().for_each(|v| bytes.extend((place(v) as u16).to_le_bytes())),
    }
}

fn differences(bytes: &mut Vec<u8>, values: &[i64]) {
    bytes.push(DIFFERENCES);
    differences_of(bytes, values);
}

fn differences_of(bytes: &mut Vec<u8>, values: &[i64]) {
    let mut before = 0_i64;
    for value in values {
        let step = value.wrapping_sub(before);
        put(bytes, ((step << 1) ^ (step >> 63)).cast_unsigned());
        before = *value;
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Damaged> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Damaged)
}

fn take_differences(bytes: &mut &[u8], count: usize) -> Result<Vec<i64>, Damaged> {
    let mut before = 0_i64;
    (0..count)
        .map(|_| {
            let raw = take(bytes)?;
            before = before.wrapping_add((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
            Ok(before)
        })
        .collect()
}

/// A block that was read: `count` leaves from `first` on.
pub struct Packed<'a> {
    first: u64,
    count: usize,
    columns: [&'a [u8]; ALL],
}

impl<'a> Packed<'a> {
    /// Takes the bytes apart.
    pub fn open(first: u64, count: usize, bytes: &'a [u8]) -> Result<Self, Damaged> {
        if count as u64 > super::BLOCK {
            return Err(Damaged);
        }
        let (heads, mut rest) = bytes.split_at_checked(ALL * 4).ok_or(Damaged)?;
        let mut columns: [&[u8]; ALL] = [&[]; ALL];
        for (column, head) in columns.iter_mut().zip(heads.as_chunks::<4>().0) {
            (*column, rest) = rest.split_at_checked(u32::from_le_bytes(*head) as usize).ok_or(Damaged)?;
        }
        Ok(Self { first, count, columns })
    }

    /// Leaves that fit, in order, at most `limit`.
    pub fn find(&self, wanted: &Wanted, leaves: &Range<u64>, limit: usize) -> Result<Vec<u64>, Damaged> {
        let mut fits = vec![true; self.count];
        let names = wanted.columns.iter().map(|(column, name)| (*column as usize + 2, *name));
        let session = wanted.session.map(|leaf| (SESSION, super::session_number(Some(leaf))));
        for (column, name) in session.into_iter().chain(names) {
            self.only(&mut fits, column, name)?;
        }
        if wanted.since.is_some() || wanted.until.is_some() {
            let (since, until) = (wanted.since.unwrap_or(i64::MIN), wanted.until);
            for (fit, wall) in fits.iter_mut().zip(self.values(WALL)?) {
                *fit &= wall >= since && until.is_none_or(|until| wall < until);
            }
        }
        let found = (self.first..).zip(fits).filter(|(leaf, fit)| *fit && leaves.contains(leaf));
        Ok(found.map(|(leaf, _)| leaf).take(limit).collect())
    }

    /// Leaves only those whose column has this value.
    fn only(&self, fits: &mut [bool], column: usize, name: i64) -> Result<(), Damaged> {
        match self.column(column)? {
            Column::List(distinct, places) => {
                let Ok(wanted) = distinct.binary_search(&name) else {
                    fits.fill(false);
                    return Ok(());
                };
                match places {
                    Places::None => {}
                    Places::Bytes(bytes) => keep(fits, bytes, |byte| usize::from(*byte) == wanted),
                    Places::Pairs(pairs) => keep(fits, pairs, |pair| usize::from(u16::from_le_bytes(*pair)) == wanted),
                }
            }
            Column::Values(values) => keep(fits, &values, |value| *value == name),
        }
        Ok(())
    }

    fn column(&self, column: usize) -> Result<Column<'_>, Damaged> {
        let (form, mut bytes) = self.columns.get(column).and_then(|c| c.split_first()).ok_or(Damaged)?;
        match *form {
            LIST => {
                let count =
                    usize::try_from(take(&mut bytes)?).ok().filter(|n| (1..=LIST_MAX).contains(n)).ok_or(Damaged)?;
                let distinct = take_differences(&mut bytes, count)?;
                let places = match count {
                    1 => Places::None,
                    2..=256 => Places::Bytes(bytes.get(..self.count).ok_or(Damaged)?),
                    _ => Places::Pairs(bytes.as_chunks::<2>().0.get(..self.count).ok_or(Damaged)?),
                };
                Ok(Column::List(distinct, places))
            }
            DIFFERENCES => Ok(Column::Values(take_differences(&mut bytes, self.count)?)),
            _ => Err(Damaged),
        }
    }

    fn values(&self, column: usize) -> Result<Vec<i64>, Damaged> {
        let (distinct, places) = match self.column(column)? {
            Column::Values(values) => return Ok(values),
            Column::List(distinct, places) => (distinct, places),
        };
        let at = |place: usize| distinct.get(place).copied().ok_or(Damaged);
        match places {
            Places::None => Ok(vec![at(0)?; self.count]),
            Places::Bytes(bytes) => bytes.iter().map(|byte| at(usize::from(*byte))).collect(),
            Places::Pairs(pairs) => pairs.iter().map(|pair| at(usize::from(u16::from_le_bytes(*pair)))).collect(),
        }
    }

    /// All rows again.
    pub fn rows(&self) -> Result<Vec<Row>, Damaged> {
        let mut rows: Vec<Row> = (self.first..).take(self.count).map(Row::at).collect();
        for column in 0..ALL {
            for (row, value) in rows.iter_mut().zip(self.values(column)?) {
                match column {
                    KIND => row.kind = u16::try_from(value).map_err(|_| Damaged)?,
                    WALL => row.wall = value,
                    SESSION => row.session = super::session_leaf(value),
                    other => *row.columns.get_mut(other - 3).ok_or(Damaged)? = value,
                }
            }
        }
        Ok(rows)
    }
}

/// Leaves only those whose place says so.
fn keep<T>(fits: &mut [bool], places: &[T], is: impl Fn(&T) -> bool) {
    for (fit, place) in fits.iter_mut().zip(places) {
        *fit &= is(place);
    }
}

enum Column<'a> {
    /// Distinct values, ascending, and which one each leaf has.
    List(Vec<i64>, Places<'a>),
    /// Each leaf's.
    Values(Vec<i64>),
}

#[derive(Clone, Copy)]
enum Places<'a> {
    /// All have the one value.
    None,
    Bytes(&'a [u8]),
    Pairs(&'a [[u8; 2]]),
}

#[cfg(test)]
mod tests;
