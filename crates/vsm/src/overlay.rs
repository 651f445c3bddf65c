//! Pages of the hypervisor's that guests place in their memory (TLFS 5.2.1).

use std::sync::Arc;

use engine::{Access, AddressSpace, EngineError, OverlayPage, PAGE_SHIFT};

/// Bit 0 of the registers that place a page: the page is visible.
const ENABLE: u64 = 1;

/// An overlay page and the register that places it: page number in bits 63:12, enable in bit 0, reserved bits that are
/// preserved between (the hypercall, VP assist, SIMP, SIEFP and reference TSC registers).
pub(crate) struct PlacedPage {
    register: u64,
    page: Arc<dyn OverlayPage>,
    access: Access,
    /// Where the page is mapped.
    mapped: Option<u64>,
}

impl PlacedPage {
    /// A zeroed page that is not visible yet, and what guests may do with it.
    pub(crate) fn new(space: &dyn AddressSpace, access: Access) -> Result<Self, EngineError> {
        Ok(Self { register: 0, page: space.create_overlay()?, access, mapped: None })
    }

    /// The register's value.
    pub(crate) fn register(&self) -> u64 {
        self.register
    }

    /// Whether the register asks for the page to be visible.
    pub(crate) fn enabled(&self) -> bool {
        self.register & ENABLE != 0
    }

    /// The page's contents, which outlive its visibility.
    pub(crate) fn page(&self) -> &dyn OverlayPage {
        &*self.page
    }

    /// The page, for others to hold.
    pub(crate) fn share(&self) -> Arc<dyn OverlayPage> {
        Arc::clone(&self.page)
    }

    /// Writes the register: shows, moves or hides the page. A page beyond `physical_address_bits` is visible nowhere.
    pub(crate) fn place(
        &mut self,
        space: &dyn AddressSpace,
        register: u64,
        physical_address_bits: u8,
    ) -> Result<(), EngineError> {
        let page = register >> PAGE_SHIFT;
        let wanted = (register & ENABLE != 0 && is_within(page, physical_address_bits)).then_some(page);
        if wanted != self.mapped {
            if let Some(mapped) = self.mapped.take() {
                space.unmap_overlay(mapped)?;
            }
            if let Some(page) = wanted {
                space.map_overlay(page, &self.page, self.access)?;
            }
            self.mapped = wanted;
        }
        self.register = register;
        Ok(())
    }
}

/// Whether a guest page is within the GPA space.
pub(crate) fn is_within(page: u64, physical_address_bits: u8) -> bool {
    page.checked_shr(u32::from(physical_address_bits).saturating_sub(PAGE_SHIFT)).unwrap_or(0) == 0
}
