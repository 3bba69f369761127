//! libFuzzer over one target, named by `GUARD_FUZZ_TARGET`; its seeds are put into the folder that `GUARD_FUZZ_SEEDS` names.
//!
//! The targets are in `targets`, which `guard-log/tests/fuzz_inputs.rs` runs too, without libFuzzer, in `bodies` and in `policy`. Fails: by a
//! panic that nothing catches, which libFuzzer turns into a file with the input; an unknown target lists the known ones. Without a
//! target it prints their names.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

mod bodies;
#[cfg(feature = "policy")]
mod policy;
mod targets;

static CHOSEN: OnceLock<&'static targets::Target> = OnceLock::new();

fn choose() {
    // The hook that libFuzzer has by now ends the process also at panics that are caught; what is not ends it later.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    #[cfg(feature = "policy")]
    let more = policy::ALL;
    #[cfg(not(feature = "policy"))]
    let more: &[targets::Target] = &[];
    let all = || targets::ALL.iter().chain(bodies::ALL).chain(more);
    let Ok(name) = std::env::var("GUARD_FUZZ_TARGET") else {
        all().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    };
    let Some(target) = all().find(|target| target.name == name) else {
        let known: Vec<&str> = all().map(|target| target.name).collect();
        panic!("no target {name:?}; there are {}", known.join(", "));
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
