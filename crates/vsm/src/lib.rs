//! The rules of Virtual Secure Mode: a pure state machine over the engine contract.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
