//! The kernel object that was embedded when this binary was built.

/// Alignment that the ELF reader needs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/guard.bpf.o")));

/// The object, empty if the binary was built without `cargo xtask build`.
pub fn bytes() -> &'static [u8] {
    &EMBEDDED.0
}
