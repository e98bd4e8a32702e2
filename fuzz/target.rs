//! One target of `parsers.rs`, for libFuzzer: the one that has this program's name.

#![no_main]

mod parsers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let target = parsers::TARGETS.iter().find(|target| target.name == env!("CARGO_BIN_NAME"));
    (target.expect("programs are named after targets").run)(bytes);
});
