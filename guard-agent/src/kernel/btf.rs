//! Field offsets of the running kernel, from `/sys/kernel/btf/vmlinux`.
//!
//! A small reader of the BTF format: only functions with their number of parameters, and structs, unions and their members, descending into anonymous ones. It must not
//! guess: a missing type or field is an error that names it, and malformed input is an error, never a panic.

use std::collections::HashMap;

use thiserror::Error;

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// Anonymous members nested deeper than this are not looked into.
const DEPTH: u32 = 8;

/// Why an offset is not known.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("reading {VMLINUX}: {0} (the kernel needs CONFIG_DEBUG_INFO_BTF)")]
    Read(#[from] std::io::Error),
    /// The bytes are not BTF.
    #[error("{VMLINUX} is not valid BTF: {0}")]
    Malformed(&'static str),
    /// The running kernel has no such field.
    #[error("this kernel's BTF has no field {0}")]
    Missing(String),
}

struct Member {
    name: u32,
    kind_type: u32,
    bit_offset: u32,
}

/// The structs and unions of a kernel.
pub struct Btf {
    strings: Vec<u8>,
    by_name: HashMap<String, u32>,
    members: HashMap<u32, Vec<Member>>,
    /// Name → its prototype.
    functions: HashMap<String, u32>,
    /// Prototype → number of parameters.
    parameters: HashMap<u32, u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let four = bytes.get(at..at.saturating_add(4)).ok_or(BtfError::Malformed("cut short"))?;
    Ok(u32::from_le_bytes(four.try_into().map_err(|_| BtfError::Malformed("cut short"))?))
}

impl Btf {
    /// Reads the running kernel's types.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::parse(&std::fs::read(VMLINUX)?)
    }

    /// Parses BTF bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()) {
            return Err(BtfError::Malformed("wrong magic"));
        }
        let header = u32_at(bytes, 4)? as usize;
        let section = |offset: u32, length: u32| {
            let start = header.saturating_add(offset as usize);
            bytes.get(start..start.saturating_add(length as usize)).ok_or(BtfError::Malformed("section out of bounds"))
        };
        let types = section(u32_at(bytes, 8)?, u32_at(bytes, 12)?)?;
        let strings = section(u32_at(bytes, 16)?, u32_at(bytes, 20)?)?.to_vec();
        let mut this = Self {
            strings,
            by_name: HashMap::new(),
            members: HashMap::new(),
            functions: HashMap::new(),
            parameters: HashMap::new(),
        };
        this.read_types(types)?;
        Ok(this)
    }

    fn read_types(&mut self, types: &[u8]) -> Result<(), BtfError> {
        let mut at = 0_usize;
        let mut id = 0_u32;
        while at < types.len() {
            id = id.checked_add(1).ok_or(BtfError::Malformed("too many types"))?;
            let name = u32_at(types, at)?;
            let info = u32_at(types, at.saturating_add(4))?;
            let (kind, count, flagged) = ((info >> 24) & 0x1f, info & 0xffff, info >> 31 == 1);
            if kind == KIND_FUNC
                && let Some(name) = self.string(name)
            {
                self.functions.insert(name, u32_at(types, at.saturating_add(8))?);
            }
            if kind == KIND_FUNC_PROTO {
                self.parameters.insert(id, count);
            }
            at = at.saturating_add(12);
            if kind == KIND_STRUCT || kind == KIND_UNION {
                let mut members = Vec::with_capacity(count as usize);
                for index in 0..count as usize {
                    let place = at.saturating_add(index * 12);
                    let offset = u32_at(types, place.saturating_add(8))?;
                    members.push(Member {
                        name: u32_at(types, place)?,
                        kind_type: u32_at(types, place.saturating_add(4))?,
                        bit_offset: if flagged { offset & 0x00ff_ffff } else { offset },
                    });
                }
                if let Some(name) = self.string(name)
                    && !name.is_empty()
                {
                    self.by_name.entry(name).or_insert(id);
                }
                self.members.insert(id, members);
            }
            at = at.saturating_add(trailing(kind, count as usize)?);
        }
        Ok(())
    }

    fn string(&self, offset: u32) -> Option<String> {
        let rest = self.strings.get(offset as usize..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        rest.get(..end).map(|s| String::from_utf8_lossy(s).into_owned())
    }

    /// Whether the kernel has a function of this name.
    pub fn has_function(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    /// How many parameters a function of the kernel has.
    pub fn parameters(&self, name: &str) -> Option<u32> {
        self.parameters.get(self.functions.get(name)?).copied()
    }

    /// Offset in bytes of the first of `fields` that the struct has.
    pub fn offset(&self, structure: &str, fields: &[&str]) -> Result<u32, BtfError> {
        let id = self.by_name.get(structure).ok_or_else(|| BtfError::Missing(structure.to_owned()))?;
        fields
            .iter()
            .find_map(|field| self.find(*id, field, DEPTH))
            .map(|bits| bits / 8)
            .ok_or_else(|| BtfError::Missing(format!("{structure}.{}", fields.join(" or "))))
    }

    fn find(&self, id: u32, field: &str, depth: u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        for member in self.members.get(&id)? {
            let name = self.string(member.name)?;
            if name == field {
                return Some(member.bit_offset);
            }
            if name.is_empty()
                && let Some(inner) = self.find(member.kind_type, field, depth)
            {
                return member.bit_offset.checked_add(inner);
            }
        }
        None
    }
}

/// Bytes that follow a type's head.
fn trailing(kind: u32, count: usize) -> Result<usize, BtfError> {
    Ok(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => count * 12,
        6 | 13 => count * 8,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return Err(BtfError::Malformed("unknown kind of type")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_fields_of_the_running_kernel() {
        let Ok(btf) = Btf::of_running_kernel() else { return };
        assert!(btf.offset("task_struct", &["tgid"]).unwrap() > 0);
        assert!(btf.offset("mm_struct", &["arg_start"]).unwrap() > 0);
        assert_eq!(btf.parameters("vfs_fsync"), Some(2));
        assert!(
            matches!(btf.offset("task_struct", &["no_such_field"]), Err(BtfError::Missing(m)) if m == "task_struct.no_such_field")
        );
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_empty_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Btf::parse(&bytes);
            if bytes.len() > 24 {
                bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[4..8].copy_from_slice(&24_u32.to_le_bytes());
                let _ = Btf::parse(&bytes);
            }
        }
    }
}
