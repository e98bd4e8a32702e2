//! One target of `parsers` for libFuzzer, selected by the program's name.

#![no_main]

mod parsers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let target = parsers::TARGETS.iter().find(|target| target.name == env!("CARGO_BIN_NAME"));
    (target.expect("each program has the name of its target").run)(bytes);
});
