//! The fuzz targets without libFuzzer: every seed, every seed cut and with single bytes changed, and every input that once
//! showed a bug (`fuzz/inputs/TARGET`). The same on every run.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "targets fail by panicking, as tests do"
)]

use std::path::Path;

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// Steps between the places that are cut or changed: about so many inputs of each seed.
const INPUTS: usize = 120;

fn tried(target: &targets::Target) -> usize {
    let mut count = 0;
    let mut run = |data: &[u8]| {
        (target.run)(data);
        count += 1;
    };
    for seed in (target.seeds)() {
        run(&seed);
        for place in (0..seed.len()).step_by(seed.len() / INPUTS + 1) {
            run(&seed[..place]);
            for change in [1, 0x80, 0xff] {
                let mut changed = seed.clone();
                changed[place] ^= change;
                run(&changed);
            }
        }
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/inputs").join(target.name);
    for file in std::fs::read_dir(kept).into_iter().flatten() {
        run(&std::fs::read(file.unwrap().path()).unwrap());
    }
    count
}

macro_rules! targets_hold {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let target = targets::ALL.iter().find(|target| target.name == $name).unwrap();
                assert!(tried(target) > 100);
            }
        )*

        #[test]
        fn every_target_is_run_and_every_kept_input_has_one() {
            let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
            assert_eq!(names, [$($name),*]);
            let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/inputs");
            for folder in std::fs::read_dir(inputs).into_iter().flatten() {
                let name = folder.unwrap().file_name();
                assert!(names.iter().any(|known| name == *known), "{name:?}");
            }
        }
    };
}

targets_hold! {
    frames_hold: "frames",
    records_hold: "records",
    notes_hold: "notes",
    keys_hold: "keys",
    checkpoints_hold: "checkpoints",
    receipts_hold: "receipts",
    growths_hold: "growths",
    witness_policies_hold: "witnesses",
    tiles_hold: "tiles",
    pruned_marks_hold: "pruned",
    journals_hold: "journal",
    segments_hold: "segments",
    public_trees_hold: "public",
}
