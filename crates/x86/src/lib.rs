//! x86
#![warn(missing_docs)]
