// SPDX-License-Identifier: Apache-2.0
// Where libearnest is: pkg-config knows.
use std::process::Command;

fn main() {
    let asked = Command::new("pkg-config").args(["--libs-only-L", "earnest"]).output().expect("pkg-config");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    for folder in String::from_utf8_lossy(&asked.stdout).split_whitespace() {
        println!("cargo:rustc-link-search=native={}", folder.trim_start_matches("-L"));
    }
    println!("cargo:rustc-link-lib=dylib=earnest");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
}
