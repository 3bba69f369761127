//! libFuzzer over one target, named by `GUARD_FUZZ_TARGET`; its seeds are put into the folder that `GUARD_FUZZ_SEEDS` names.
//!
//! The targets are in `targets`, which `guard-log/tests/fuzz_inputs.rs` runs too, without libFuzzer. Fails: by a panic, which
//! libFuzzer turns into a file with the input; an unknown target lists the known ones.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

mod targets;

static CHOSEN: OnceLock<&'static targets::Target> = OnceLock::new();

fn choose() {
    let name = std::env::var("GUARD_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets::ALL.iter().find(|target| target.name == name) else {
        let known: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
        panic!("GUARD_FUZZ_TARGET is {name:?}; there are {}", known.join(", "));
    };
    let _ = CHOSEN.set(target);
    if let Some(folder) = std::env::var_os("GUARD_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = std::path::Path::new(&folder).join(format!("seed-{number}"));
            std::fs::write(&path, seed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

fuzz_target!(init: choose(), |data: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        (target.run)(data);
    }
});
