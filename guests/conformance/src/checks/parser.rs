//! The hypercall input value and parameter lists in memory (TLFS 3.3, 3.6, 3.7, 3.12).

use runtime::calls::{PARTITION_SELF, VP_SELF, header};
use runtime::hypercall::{pages as parameter_pages, raw, slow};
use runtime::pages::{self, PAGE_SIZE};
use runtime::{hypercall, interface};
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, InputVtl, RegisterName};

use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "3.12" unknown_call_code_is_refused,
    "3.14" unknown_extended_call_code_is_refused,
    "3.7" every_reserved_bit_of_the_input_value_is_refused,
    "3.7.1" variable_header_of_a_fixed_call_is_refused,
    "3.12" rep_count_of_a_simple_call_is_refused,
    "3.12" rep_start_of_a_simple_call_is_refused,
    "3.12" rep_call_without_reps_is_refused,
    "3.7" rep_start_not_below_the_count_is_refused,
    "3.6" misaligned_input_is_refused,
    "3.6" misaligned_output_is_refused,
    "3.6" input_across_pages_is_refused,
    "3.6" output_across_pages_is_refused,
    "3.6" input_up_to_the_end_of_a_page_is_taken,
    "3.12" input_beyond_guest_memory_is_refused,
    "3.12" output_beyond_guest_memory_is_refused,
    "3.6" input_where_there_is_no_memory_is_refused,
    "3.6" overlapping_input_and_output_are_refused,
    "3.6" pointer_to_output_that_is_not_there_is_ignored,
    "3.8" rep_call_counts_what_it_did,
    "3.2" failing_rep_leaves_the_ones_before_done,
    "3.8" reps_completed_count_from_element_zero,
    "3.9" failing_reps_are_not_written,
    "3.3" hundreds_of_reps_complete,
}

/// A register name that nothing has.
const NO_REGISTER: u32 = 0x0FFF_FFFF;
/// What output memory holds before a call.
const UNTOUCHED: u64 = 0x5555_AAAA_5555_AAAA;

/// Sets up the hypercall interface of VTL0.
pub fn prepare() -> Outcome {
    interface::enable_hypercalls();
    Ok(())
}

/// HvCallGetVpRegisters by hand: of a list of registers of the caller's.
pub struct Get {
    /// The call's parameters.
    pub input: *mut u64,
    /// Where the values go.
    pub output: *mut u64,
}

impl Get {
    /// A call that reads these registers, in fresh pages, with the parameter list at `offset` of its page.
    pub fn at(offset: usize, names: &[u32]) -> Self {
        let input = (pages::allocate(1) as usize + offset) as *mut u64;
        let output = pages::allocate(1).cast::<u64>();
        let [partition, target] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
        // SAFETY: the pages are fresh; what is written lies in them or in the one behind, which is output.
        unsafe {
            input.write_unaligned(partition);
            input.add(1).write_unaligned(target);
            for (index, name) in names.iter().enumerate() {
                input.add(2).cast::<u32>().add(index).write_unaligned(*name);
            }
            for word in 0..PAGE_SIZE / 8 {
                output.add(word).write_volatile(UNTOUCHED);
            }
        }
        Self { input, output }
    }

    /// The call that reads these registers.
    pub fn new(names: &[u32]) -> Self {
        Self::at(0, names)
    }

    /// Makes the call.
    pub fn call(&self, control: HypercallInput) -> HypercallResult {
        // SAFETY: the call writes nothing but the output page.
        unsafe { raw(control, self.input as u64, self.output as u64) }
    }

    /// A word of the output.
    pub fn word(&self, index: usize) -> u64 {
        // SAFETY: the page is valid.
        unsafe { self.output.add(index).read_volatile() }
    }
}

/// The input value of HvCallGetVpRegisters.
pub fn get(count: u16) -> HypercallInput {
    HypercallInput::rep(CallCode::GetVpRegisters, count)
}

/// A register that every VTL can read.
pub const VP_INDEX: u32 = RegisterName::VpIndex.0;

fn status(control: HypercallInput) -> HvStatus {
    Get::new(&[VP_INDEX]).call(control).status()
}

fn unknown_call_code_is_refused() -> Outcome {
    for code in [0, 0x7FFF, 0x0FFF] {
        ensure_eq!(status(HypercallInput::simple(CallCode(code))), HvStatus::InvalidHypercallCode);
    }
    Ok(())
}

fn unknown_extended_call_code_is_refused() -> Outcome {
    let status = status(HypercallInput::simple(CallCode(0x8FFF)));
    // Without the privilege for extended hypercalls they are denied before they are looked up.
    ensure!([HvStatus::InvalidHypercallCode, HvStatus::AccessDenied].contains(&status), "{status}");
    Ok(())
}

fn every_reserved_bit_of_the_input_value_is_refused() -> Outcome {
    for bit in (27..=30).chain(44..=47).chain(60..=63) {
        let found = status(HypercallInput::from_bits(get(1).into_bits() | 1 << bit));
        ensure!(found == HvStatus::InvalidHypercallInput, "bit {bit}: {found}");
    }
    Ok(())
}

fn variable_header_of_a_fixed_call_is_refused() -> Outcome {
    ensure_eq!(status(get(1).with_variable_header_size(1)), HvStatus::InvalidHypercallInput);
    Ok(())
}

const SIMPLE: HypercallInput = HypercallInput::simple(CallCode::EnablePartitionVtl);

fn rep_count_of_a_simple_call_is_refused() -> Outcome {
    ensure_eq!(status(SIMPLE.with_rep_count(1)), HvStatus::InvalidHypercallInput);
    Ok(())
}

fn rep_start_of_a_simple_call_is_refused() -> Outcome {
    ensure_eq!(status(SIMPLE.with_rep_start_index(1)), HvStatus::InvalidHypercallInput);
    Ok(())
}

fn rep_call_without_reps_is_refused() -> Outcome {
    ensure_eq!(status(get(0)), HvStatus::InvalidHypercallInput);
    Ok(())
}

fn rep_start_not_below_the_count_is_refused() -> Outcome {
    for start in [1, 2, 0xFFF] {
        ensure_eq!(status(get(1).with_rep_start_index(start)), HvStatus::InvalidHypercallInput);
    }
    Ok(())
}

fn misaligned_input_is_refused() -> Outcome {
    for offset in [1, 2, 4] {
        ensure_eq!(Get::at(offset, &[VP_INDEX]).call(get(1)).status(), HvStatus::InvalidAlignment);
    }
    Ok(())
}

fn misaligned_output_is_refused() -> Outcome {
    for offset in [1, 2, 4] {
        let mut call = Get::new(&[VP_INDEX]);
        call.output = (call.output as usize + offset) as *mut u64;
        ensure_eq!(call.call(get(1)).status(), HvStatus::InvalidAlignment);
    }
    Ok(())
}

fn input_across_pages_is_refused() -> Outcome {
    ensure_eq!(Get::at(PAGE_SIZE - 16, &[VP_INDEX]).call(get(1)).status(), HvStatus::InvalidAlignment);
    Ok(())
}

fn output_across_pages_is_refused() -> Outcome {
    let mut call = Get::new(&[VP_INDEX]);
    call.output = (call.output as usize + PAGE_SIZE - 8) as *mut u64;
    ensure_eq!(call.call(get(1)).status(), HvStatus::InvalidAlignment);
    Ok(())
}

fn input_up_to_the_end_of_a_page_is_taken() -> Outcome {
    let call = Get::at(PAGE_SIZE - 24, &[VP_INDEX, VP_INDEX]);
    ensure_eq!(call.call(get(2)).status(), HvStatus::Success);
    Ok(())
}

/// Beyond what any processor can address.
const BEYOND: u64 = 1 << 60;

fn input_beyond_guest_memory_is_refused() -> Outcome {
    let (_, output) = parameter_pages();
    // SAFETY: the call is refused.
    let result = unsafe { raw(get(1), BEYOND, output as u64) };
    ensure_eq!(result.status(), HvStatus::InvalidAlignment);
    Ok(())
}

fn output_beyond_guest_memory_is_refused() -> Outcome {
    let mut call = Get::new(&[VP_INDEX]);
    call.output = BEYOND as *mut u64;
    ensure_eq!(call.call(get(1)).status(), HvStatus::InvalidAlignment);
    Ok(())
}

fn input_where_there_is_no_memory_is_refused() -> Outcome {
    let (_, output) = parameter_pages();
    // SAFETY: the call is refused.
    let result = unsafe { raw(get(1), pages::WITHOUT_MEMORY, output as u64) };
    ensure!(result.status() != HvStatus::Success);
    Ok(())
}

fn overlapping_input_and_output_are_refused() -> Outcome {
    let mut call = Get::new(&[VP_INDEX]);
    call.output = (call.input as usize + 16) as *mut u64;
    ensure!(call.call(get(1)).status() != HvStatus::Success);
    Ok(())
}

fn pointer_to_output_that_is_not_there_is_ignored() -> Outcome {
    let (input, _) = parameter_pages();
    // SAFETY: the page is for parameters. No partition has this number, so the call does nothing.
    let result = unsafe {
        input.cast::<u64>().write(0x1234);
        raw(SIMPLE, input as u64, 0x1003)
    };
    ensure!(result.status() != HvStatus::InvalidAlignment, "the output pointer was looked at");
    ensure!(result.status() != HvStatus::Success);
    Ok(())
}

fn rep_call_counts_what_it_did() -> Outcome {
    let result = Get::new(&[VP_INDEX; 7]).call(get(7));
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 7));
    Ok(())
}

fn failing_rep_leaves_the_ones_before_done() -> Outcome {
    let call = Get::new(&[VP_INDEX, VP_INDEX, NO_REGISTER, VP_INDEX]);
    let result = call.call(get(4));
    ensure!(result.status() != HvStatus::Success);
    ensure_eq!(result.reps_completed(), 2);
    ensure_eq!((call.word(0), call.word(2)), (0, 0));
    Ok(())
}

fn reps_completed_count_from_element_zero() -> Outcome {
    let call = Get::new(&[NO_REGISTER, NO_REGISTER, VP_INDEX]);
    let result = call.call(get(3).with_rep_start_index(2));
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 3));
    ensure_eq!((call.word(0), call.word(3), call.word(4)), (UNTOUCHED, UNTOUCHED, 0));
    Ok(())
}

fn failing_reps_are_not_written() -> Outcome {
    let call = Get::new(&[VP_INDEX, NO_REGISTER, VP_INDEX]);
    call.call(get(3));
    ensure_eq!((call.word(2), call.word(4)), (UNTOUCHED, UNTOUCHED));
    Ok(())
}

fn hundreds_of_reps_complete() -> Outcome {
    // As many values as fit the output page.
    const COUNT: usize = PAGE_SIZE / 16;
    let mut input = [0; 2 + COUNT / 2];
    input[..2].copy_from_slice(&header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT));
    input[2..].fill(u64::from(VP_INDEX) | u64::from(VP_INDEX) << 32);
    let mut output = [UNTOUCHED; 2 * COUNT];
    // SAFETY: the call only reads registers.
    let result = unsafe { hypercall::rep(get(COUNT as u16), &input, &mut output) };
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, COUNT as u16));
    ensure!(output.iter().all(|word| *word == 0), "not all values were written");
    // SAFETY: as above; one more does not fit.
    let result = unsafe { slow(get(COUNT as u16 + 1), &input, &mut output) };
    ensure_eq!(result.status(), HvStatus::InvalidAlignment);
    Ok(())
}
