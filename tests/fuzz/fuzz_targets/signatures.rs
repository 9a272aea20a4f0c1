#![no_main]

#[allow(dead_code, reason = "a target uses one of them")]
#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::signatures(data));
