//! Compiles the contract with a compiler written in Rust, so that no `protoc` has to be installed.
use std::error::Error;

const FILES: [&str; 5] = [
    "guard/v1/record.proto",
    "guard/v1/agent.proto",
    "guard/v1/control.proto",
    "guard/v1/local.proto",
    "guard/v1/login.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    // Records are passed on as parts of the message that brought them.
    tonic_prost_build::configure().bytes(".guard.v1.ShipBatch.records").compile_fds(descriptors)?;
    Ok(())
}
