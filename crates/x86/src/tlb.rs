//! The cache of translations.

/// Translations of linear pages.
#[derive(Debug, Default)]
pub(crate) struct Tlb {}
