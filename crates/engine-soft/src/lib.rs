//! engine-soft
#![warn(missing_docs)]
