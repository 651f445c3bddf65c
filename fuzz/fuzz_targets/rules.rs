//! Sequences of hypercalls, register writes and VTL switches against the rules, over the fake engine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vsm::fuzzing::drive(data));
