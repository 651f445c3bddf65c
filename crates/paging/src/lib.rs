//! Walks of x86 page tables over any memory.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
