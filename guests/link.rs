//! The build script of every image: links it with the runtime's memory layout.

use std::path::Path;

fn main() {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's directory");
    let script = Path::new(&package).join("../runtime/image.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
