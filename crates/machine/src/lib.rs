//! machine
#![warn(missing_docs)]
