//! Types of the Hyper-V Top-Level Functional Specification (TLFS).
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
