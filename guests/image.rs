//! The build script of every image: links it with its memory layout. An image with a layout of its own, `image.ld` in its
//! package, is position-independent; the others have the runtime's.

use std::path::Path;

fn main() {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's directory");
    let own = Path::new(&package).join("image.ld");
    let common = Path::new(&package).join("../runtime/image.ld");
    let (script, kind) =
        if own.exists() { (&own, ["-static-pie"].as_slice()) } else { (&common, ["-static", "-no-pie"].as_slice()) };
    for file in [&own, &common] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    for argument in kind {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
