//! The one parser of hypercalls: it finds the parameters of every calling convention, checks them, runs the handler and
//! writes back what it did (TLFS 3.6 to 3.9).

use std::ops::Range;

use engine::{AccessKind, AddressSpace, MemoryError, PAGE_SIZE};
use tlfs::{HvStatus, HypercallInput, HypercallResult};
use zerocopy::FromBytes;

use super::convention::{Block, Convention};
use super::definition::{Definition, Kind};
use super::{Call, Stop};
use crate::Vp;
use crate::intercept::Attempt;

/// Where the input and the output of a call are copied to; kept by the VP so that a call allocates nothing.
#[derive(Default)]
pub(crate) struct Buffers {
    input: Aligned,
    output: Aligned,
}

/// A page, aligned for every type of parameter.
#[repr(C, align(16))]
struct Aligned([u8; PAGE_SIZE as usize]);

impl Default for Aligned {
    fn default() -> Self {
        Self([0; PAGE_SIZE as usize])
    }
}

/// How far a hypercall got.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is complete.
    Complete(HypercallResult),
    /// The guest executes it again, with this input value.
    Again(HypercallInput),
    /// A higher VTL is to be told; made again, it has this input value.
    Intercepted(HypercallInput, Attempt),
    /// It is made again with this input value when that VP is stopped.
    NeedsVp(HypercallInput, u32),
    /// A parameter page forbids an access; nothing was done (TLFS 3.6).
    Denied { gpa: u64, kind: AccessKind },
}

/// Why the parameters cannot be used.
enum Unusable {
    Status(HvStatus),
    Denied { gpa: u64, kind: AccessKind },
}

impl From<MemoryError> for Unusable {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Unmapped { .. } => Self::Status(HvStatus::InvalidHypercallInput),
            MemoryError::Denied { gpa, kind } => Self::Denied { gpa, kind },
        }
    }
}

impl From<HvStatus> for Unusable {
    fn from(status: HvStatus) -> Self {
        Self::Status(status)
    }
}

/// The sizes of one call's parameters, in bytes.
struct Extent {
    /// Fixed and variable header.
    header: usize,
    /// The whole input.
    input: usize,
    /// The whole output.
    output: usize,
    /// The first element to do now and the one after the last: 0 and 0 for a simple call.
    reps: Range<usize>,
    /// All elements of the call.
    count: usize,
    /// An input element.
    input_element: usize,
    /// An output element; the whole output of a simple call.
    output_element: usize,
}

impl Extent {
    /// Checks the input value against the definition (TLFS 3.7, 3.12).
    fn of(definition: &Definition, control: HypercallInput) -> Result<Self, HvStatus> {
        let variable = usize::from(control.variable_header_size()) * 8;
        let (start, count) = (usize::from(control.rep_start_index()), usize::from(control.rep_count()));
        if control.has_reserved_bits() || variable != 0 && !definition.variable {
            return Err(HvStatus::InvalidHypercallInput);
        }
        let header = definition.header + variable;
        match definition.kind {
            Kind::Simple { .. } if count != 0 || start != 0 => Err(HvStatus::InvalidHypercallInput),
            Kind::Simple { output } => Ok(Self {
                header,
                input: header,
                output,
                reps: 0..0,
                count: 0,
                input_element: 0,
                output_element: output,
            }),
            Kind::Rep { .. } if start >= count => Err(HvStatus::InvalidHypercallInput),
            Kind::Rep { input, output, batch } => Ok(Self {
                header,
                input: header + count * input,
                output: count * output,
                reps: start..count.min(start + batch),
                count,
                input_element: input,
                output_element: output,
            }),
        }
    }

    /// The input elements to do now, within the input.
    fn input_elements(&self) -> Range<usize> {
        let at = |rep: usize| self.header + rep * self.input_element;
        at(self.reps.start)..at(self.reps.end)
    }

    /// The output to produce now, within the output.
    fn output_elements(&self) -> Range<usize> {
        if self.reps.is_empty() {
            0..self.output
        } else {
            self.reps.start * self.output_element..self.reps.end * self.output_element
        }
    }
}

/// Where the parameters are.
enum Place {
    /// In guest memory, at these addresses.
    Memory { input: u64, output: u64 },
    /// In registers; the output begins at this byte of the block.
    Registers { block: Block, output: usize },
}

impl Place {
    /// Finds the parameters and checks that they are where they may be.
    fn find(vp: &Vp, convention: Convention, control: HypercallInput, extent: &Extent) -> Result<Self, Unusable> {
        let state = vp.active();
        if !control.fast() {
            let input = if extent.input == 0 { 0 } else { convention.input(state.vcpu.as_ref()) };
            let output = if extent.output == 0 { 0 } else { convention.output(state.vcpu.as_ref()) };
            let bits = vp.partition().physical_address_bits();
            check_list(input, extent.input, bits)?;
            check_list(output, extent.output, bits)?;
            if overlap(input, extent.input, output, extent.output) {
                return Err(HvStatus::InvalidAlignment.into());
            }
            state.space.check(input, extent.input as u64, AccessKind::Read)?;
            state.space.check(output, extent.output as u64, AccessKind::Write)?;
            return Ok(Self::Memory { input, output });
        }
        // Output begins in the first unused register pair, and only 64-bit callers can have any (TLFS 3.8.1).
        let output = extent.input.next_multiple_of(16);
        let block = convention.block(state.vcpu.as_ref());
        if extent.input > block.len()
            || extent.output != 0 && (convention == Convention::Legacy || output + extent.output > block.len())
        {
            return Err(HvStatus::InvalidHypercallInput.into());
        }
        Ok(Self::Registers { block, output })
    }

    fn read(&self, space: &dyn AddressSpace, at: usize, data: &mut [u8]) -> Result<(), Unusable> {
        match self {
            _ if data.is_empty() => {}
            Self::Memory { input, .. } => space.read(input.wrapping_add(at as u64), data)?,
            Self::Registers { block, .. } => {
                data.copy_from_slice(block.get(at..at + data.len()).ok_or(HvStatus::InvalidHypercallInput)?);
            }
        }
        Ok(())
    }

    fn write(self, vp: &mut Vp, convention: Convention, at: usize, data: &[u8]) -> Result<(), Unusable> {
        let state = vp.active_mut();
        match self {
            _ if data.is_empty() => {}
            Self::Memory { output, .. } => state.space.write(output.wrapping_add(at as u64), data)?,
            Self::Registers { mut block, output } => {
                let at = output + at;
                let place = block.get_mut(at..at + data.len()).ok_or(HvStatus::InvalidHypercallInput)?;
                place.copy_from_slice(data);
                convention.set_block(state.vcpu.as_mut(), &block);
            }
        }
        Ok(())
    }
}

/// Parameter lists are aligned, within the GPA space and do not cross a page (TLFS 3.6, 3.12).
fn check_list(gpa: u64, bytes: usize, physical_address_bits: u8) -> Result<(), HvStatus> {
    let fits = gpa.is_multiple_of(8)
        && gpa.checked_shr(physical_address_bits.into()).unwrap_or(0) == 0
        && gpa % PAGE_SIZE + bytes as u64 <= PAGE_SIZE;
    if fits || bytes == 0 { Ok(()) } else { Err(HvStatus::InvalidAlignment) }
}

fn overlap(input: u64, input_bytes: usize, output: u64, output_bytes: usize) -> bool {
    input_bytes != 0
        && output_bytes != 0
        && input < output.saturating_add(output_bytes as u64)
        && output < input.saturating_add(input_bytes as u64)
}

/// Executes the call `control` of `definition`, which the active VTL may make.
///
/// # Errors
/// When the rules or the engine failed.
pub(super) fn execute(
    vp: &mut Vp,
    other: Option<&mut Vp>,
    convention: Convention,
    control: HypercallInput,
    definition: &Definition,
    now: u64,
) -> Result<Outcome, crate::Error> {
    let extent = match Extent::of(definition, control) {
        Ok(extent) => extent,
        Err(status) => return Ok(Outcome::Complete(HypercallResult::simple(status))),
    };
    // A rep call that fails before its first rep has done what it had done before.
    let result = |status, done: usize| HypercallResult::rep(status, (extent.reps.start + done) as u16);
    let unusable = |unusable| match unusable {
        Unusable::Status(status) => Outcome::Complete(result(status, 0)),
        Unusable::Denied { gpa, kind } => Outcome::Denied { gpa, kind },
    };
    let place = match Place::find(vp, convention, control, &extent) {
        Ok(place) => place,
        Err(error) => return Ok(unusable(error)),
    };
    let mut buffers = vp.take_buffers();
    let output_elements = extent.output_elements();
    let mut done = 0;
    let stopped = run(vp, other, definition, &extent, &place, &mut buffers, &mut done, now);
    let count = extent.reps.len();
    let done = done.min(count);
    let outcome = match stopped {
        Err(Failed::Unusable(error)) => Ok(unusable(error)),
        Err(Failed::Stop(Stop::Failed(error))) => Err(error),
        stopped => {
            // Only completed reps are written back, and a simple call's output only on success.
            let written = match (&stopped, count) {
                (Ok(()), _) => output_elements.len(),
                (Err(_), 0) => 0,
                (Err(_), _) => done * extent.output_element,
            };
            let done = if stopped.is_ok() { count } else { done };
            let data = buffers.output.0.get(..written).unwrap_or_default();
            let next = extent.reps.start + done;
            let again = control.with_rep_start_index((next as u16) & 0xFFF);
            match (place.write(vp, convention, output_elements.start, data), stopped) {
                // Another VP took the page away meanwhile; what was done stays done.
                (Err(_), _) => Ok(Outcome::Complete(result(HvStatus::InvalidHypercallInput, done))),
                (Ok(()), Err(Failed::Stop(Stop::Again))) => Ok(Outcome::Again(again)),
                (Ok(()), Err(Failed::Stop(Stop::Intercepted(attempt)))) => Ok(Outcome::Intercepted(again, attempt)),
                (Ok(()), Err(Failed::Stop(Stop::NeedsVp(index)))) => Ok(Outcome::NeedsVp(again, index)),
                (Ok(()), Err(Failed::Stop(Stop::Status(status)))) => Ok(Outcome::Complete(result(status, done))),
                (Ok(()), _) => Ok(Outcome::Complete(result(HvStatus::Success, done))),
            }
        }
    };
    vp.return_buffers(buffers);
    outcome
}

enum Failed {
    Unusable(Unusable),
    Stop(Stop),
}

/// Copies the input in and runs the handler.
#[expect(clippy::too_many_arguments, reason = "the parts of one call")]
fn run(
    vp: &mut Vp,
    other: Option<&mut Vp>,
    definition: &Definition,
    extent: &Extent,
    place: &Place,
    buffers: &mut Buffers,
    done: &mut usize,
    now: u64,
) -> Result<(), Failed> {
    let input_elements = extent.input_elements();
    let bytes = extent.header + input_elements.len();
    let space = &*vp.active().space;
    let fit = || Failed::Unusable(HvStatus::InvalidHypercallInput.into());
    let input = buffers.input.0.get_mut(..bytes).ok_or_else(fit)?;
    if input_elements.start == extent.header {
        place.read(space, 0, input).map_err(Failed::Unusable)?;
    } else {
        let (header, elements) = input.split_at_mut(extent.header);
        place.read(space, 0, header).map_err(Failed::Unusable)?;
        place.read(space, input_elements.start, elements).map_err(Failed::Unusable)?;
    }
    let output = buffers.output.0.get_mut(..extent.output_elements().len()).ok_or_else(fit)?;
    let (header, elements) = input.split_at(extent.header);
    let (fixed, variable) = header.split_at(definition.header);
    let variable = <[u64]>::ref_from_bytes(variable).map_err(|_| fit())?;
    let mut call = Call { vp, other, variable, now };
    (definition.execute)(&mut call, fixed, elements, output, done).map_err(Failed::Stop)?;
    *done = extent.reps.len();
    // The guest may take interrupts before the rest is done (TLFS 3.3).
    if extent.reps.end < extent.count { Err(Failed::Stop(Stop::Again)) } else { Ok(()) }
}
