//! What can go wrong in the rules themselves; a guest's mistakes are never errors.

use engine::EngineError;
use tlfs::RegisterName;

/// Why the rules could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine has fewer of something than the configuration asks for.
    #[error("the engine offers at most {most} {what}, not {asked}")]
    Limit {
        /// What there is too little of.
        what: &'static str,
        /// How many the engine offers.
        most: u32,
        /// How many were asked for.
        asked: u32,
    },
    /// A register that was saved cannot be restored here.
    #[error("register {0:?} cannot be restored")]
    Register(RegisterName),
    /// The configuration contradicts itself.
    #[error("invalid configuration: {0}")]
    Config(&'static str),
}
