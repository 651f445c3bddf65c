//! Builds the guests that are part of the command line: `guests/`, a workspace of its own for bare-metal images.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that `guests/.cargo/config.toml` names.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Parts of the repository that end up in the images.
const SOURCES: [&str; 2] = ["guests", "crates/tlfs"];

fn main() {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let repository = package.join("../..").canonicalize().expect("the repository is above the package");
    let target = Path::new(&variable("OUT_DIR")).join("guests");

    let mut cargo = Command::new(variable("CARGO"));
    // The flags, wrappers and profiles of the outer build are not for bare metal.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let flags = ["RUSTFLAGS", "RUSTDOCFLAGS", "CLIPPY_ARGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER"];
        let kept = ["CARGO", "CARGO_HOME", "CARGO_NET_OFFLINE"];
        if flags.contains(&&*text) || text.starts_with("CARGO") && !kept.contains(&&*text) {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(repository.join("guests")).args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the guests do not build");

    println!("cargo::rustc-env=OPENVSM_GUESTS={}", target.join(TARGET).join("release").display());
    for source in SOURCES {
        rerun_if_changed(&repository.join(source));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Watches every file below a directory but what builds leave there. (Cargo would watch those too.)
fn rerun_if_changed(path: &Path) {
    if path.is_dir() {
        if path.file_name().is_some_and(|name| name == "target") {
            return;
        }
        for entry in path.read_dir().expect("sources can be listed").flatten() {
            rerun_if_changed(&entry.path());
        }
    }
    println!("cargo::rerun-if-changed={}", path.display());
}
