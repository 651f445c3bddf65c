//! The guests that are part of this program; the build script builds them.

/// Checks the rules from inside.
pub const CONFORMANCE: &[u8] = include_bytes!(concat!(env!("OPENVSM_GUESTS"), "/conformance"));
/// Tells the story of a secure kernel.
pub const DEMO: &[u8] = include_bytes!(concat!(env!("OPENVSM_GUESTS"), "/demo"));
/// Measures.
pub const BENCH: &[u8] = include_bytes!(concat!(env!("OPENVSM_GUESTS"), "/bench"));
/// Guards a Linux kernel from VTL1.
pub const GUARDIAN: &[u8] = include_bytes!(concat!(env!("OPENVSM_GUESTS"), "/guardian"));
