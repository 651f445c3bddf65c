//! Flushing TLBs (TLFS 9.4).

use tlfs::hypercalls::flush as input;
use tlfs::memory::{FlushFlags, GvaRange};
use tlfs::vp_set::VpSet;
use tlfs::{CallCode, HvStatus};
use zerocopy::IntoBytes;

use super::{Call, Rep, Simple, Stop};
use crate::registers::processor;
use crate::tlb::Flush;

/// All elements of a slow call are done at once: other VPs are disturbed once, too.
const BATCH: usize = 512;

/// HvCallFlushVirtualAddressSpace.
pub(super) struct FlushVirtualAddressSpace;

impl Simple for FlushVirtualAddressSpace {
    const CODE: CallCode = CallCode::FlushVirtualAddressSpace;
    type Input = input::FlushVirtualAddressSpace;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        check(call, input.address_space, input.flags.with_non_global_mappings_only(false))?;
        flush(call, input.flags, VpSet::from_mask(input.processor_mask), &Flush::Everything)
    }
}

/// HvCallFlushVirtualAddressSpaceEx.
pub(super) struct FlushVirtualAddressSpaceEx;

impl Simple for FlushVirtualAddressSpaceEx {
    const CODE: CallCode = CallCode::FlushVirtualAddressSpaceEx;
    const VARIABLE: bool = true;
    type Input = input::FlushVirtualAddressSpaceEx;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        check(call, input.address_space, input.flags.with_non_global_mappings_only(false))?;
        let set = VpSet::parse(&input.processor_set, call.variable.as_bytes())?;
        flush(call, input.flags, set, &Flush::Everything)
    }
}

/// HvCallFlushVirtualAddressList.
pub(super) struct FlushVirtualAddressList;

impl Rep for FlushVirtualAddressList {
    const CODE: CallCode = CallCode::FlushVirtualAddressList;
    const BATCH: usize = BATCH;
    type Header = input::FlushVirtualAddressSpace;
    type Input = GvaRange;
    type Output = ();

    fn call(
        call: &mut Call<'_>,
        header: &Self::Header,
        input: &[GvaRange],
        _: &mut [()],
        _: &mut usize,
    ) -> Result<(), Stop> {
        check(call, header.address_space, header.flags)?;
        flush(call, header.flags, VpSet::from_mask(header.processor_mask), &Flush::list(input))
    }
}

/// HvCallFlushVirtualAddressListEx.
pub(super) struct FlushVirtualAddressListEx;

impl Rep for FlushVirtualAddressListEx {
    const CODE: CallCode = CallCode::FlushVirtualAddressListEx;
    const VARIABLE: bool = true;
    const BATCH: usize = BATCH;
    type Header = input::FlushVirtualAddressSpaceEx;
    type Input = GvaRange;
    type Output = ();

    fn call(
        call: &mut Call<'_>,
        header: &Self::Header,
        input: &[GvaRange],
        _: &mut [()],
        _: &mut usize,
    ) -> Result<(), Stop> {
        check(call, header.address_space, header.flags)?;
        let set = VpSet::parse(&header.processor_set, call.variable.as_bytes())?;
        flush(call, header.flags, set, &Flush::list(input))
    }
}

/// Checks the address space, unless all are flushed, and that there are no flags but those that every call takes.
fn check(call: &Call<'_>, address_space: u64, flags: FlushFlags) -> Result<(), HvStatus> {
    let allowed = FlushFlags::new().with_all_processors(true).with_all_virtual_address_spaces(true);
    if flags.into_bits() & !allowed.into_bits() != 0 {
        return Err(HvStatus::InvalidParameter);
    }
    let space = processor::cr3(address_space, call.partition().physical_address_bits());
    if flags.all_virtual_address_spaces() || space.is_ok() { Ok(()) } else { Err(HvStatus::InvalidParameter) }
}

/// Flushes TLBs of the caller's VTL. What is there of other address spaces, and global pages, go as well. By the time the
/// caller executes again, no VP of the set executes with what was cached before.
fn flush(call: &mut Call<'_>, flags: FlushFlags, set: VpSet<'_>, what: &Flush) -> Result<(), Stop> {
    let vps = call.partition().config().vps;
    let set = if flags.all_processors() { VpSet::All } else { set };
    let targets = set.indices(vps);
    if targets.clone().next().is_none() {
        return Err(HvStatus::InvalidParameter.into());
    }
    let vtl = call.vtl();
    call.vp.flush(vtl, targets.filter(|&vp| vp < vps), what);
    Ok(())
}
