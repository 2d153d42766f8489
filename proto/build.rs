//! Compiles `anyport/v1/*.proto` without a `protoc`: protox reads them, and
//! the descriptors it returns feed both the code generator and reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "resources",
        "config",
        "discovery",
        "balancer",
        "events",
        "edge",
        "handover",
    ]
    .map(|name| format!("anyport/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("anyport.v1.bin"), descriptors.encode_to_vec())?;
    // Bytes fields and boxed oneofs keep the generated defaults: messages are
    // converted to model types at once, so nothing is gained by tuning them.
    tonic_prost_build::configure()
        // It would show private keys.
        .skip_debug(["anyport.v1.Certificate"])
        .compile_fds(descriptors)?;
    Ok(())
}
