//! machine
#![warn(missing_docs)]

pub mod boot;
pub mod load;
pub mod memory_map;
