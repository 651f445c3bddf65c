//! What the parser must know about a hypercall, derived from the types of its handler.

use tlfs::HvStatus;
use tlfs::cpuid::PartitionPrivileges;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Call, Rep, Simple, Stop};

/// Decodes the input and runs the handler: the bytes of the header, of the input elements to be done and of the output
/// (elements), and the number of elements that were done.
type Execute = fn(&mut Call<'_>, &[u8], &[u8], &mut [u8], &mut usize) -> Result<(), Stop>;

/// A hypercall as the parser sees it. Sizes are in bytes.
pub(super) struct Definition {
    /// What the partition must be allowed to do.
    pub(super) privileges: PartitionPrivileges,
    /// Whether the call takes a variable header.
    pub(super) variable: bool,
    /// What comes before the variable header and the elements.
    pub(super) header: usize,
    pub(super) kind: Kind,
    pub(super) execute: Execute,
}

/// The two classes of hypercalls (TLFS 3.2).
pub(super) enum Kind {
    Simple {
        output: usize,
    },
    Rep {
        /// Size of an input element.
        input: usize,
        /// Size of an output element.
        output: usize,
        /// Most elements to do at once.
        batch: usize,
    },
}

impl Definition {
    pub(super) const fn simple<C: Simple>() -> Self {
        let () = const { assert!(!C::VARIABLE || size_of::<C::Input>() % 8 == 0) };
        Self {
            privileges: C::PRIVILEGES,
            variable: C::VARIABLE,
            header: size_of::<C::Input>(),
            kind: Kind::Simple { output: size_of::<C::Output>() },
            execute: simple::<C>,
        }
    }

    pub(super) const fn rep<C: Rep>() -> Self {
        let () = const { assert!(size_of::<C::Header>() % 8 == 0) };
        Self {
            privileges: C::PRIVILEGES,
            variable: C::VARIABLE,
            header: size_of::<C::Header>(),
            kind: Kind::Rep { input: size_of::<C::Input>(), output: size_of::<C::Output>(), batch: C::BATCH },
            execute: rep::<C>,
        }
    }
}

/// The parser cut the bytes to fit the types, so that this is never the guest's to see.
fn misfit<T>(_: T) -> Stop {
    HvStatus::InvalidHypercallInput.into()
}

fn simple<C: Simple>(
    call: &mut Call<'_>,
    header: &[u8],
    _: &[u8],
    output: &mut [u8],
    _: &mut usize,
) -> Result<(), Stop> {
    let input = C::Input::read_from_bytes(header).map_err(misfit)?;
    C::call(call, &input)?.write_to(output).map_err(misfit)
}

fn rep<C: Rep>(
    call: &mut Call<'_>,
    header: &[u8],
    input: &[u8],
    output: &mut [u8],
    done: &mut usize,
) -> Result<(), Stop> {
    let header = C::Header::read_from_bytes(header).map_err(misfit)?;
    let count = if size_of::<C::Input>() != 0 {
        input.len() / size_of::<C::Input>()
    } else {
        output.len() / size_of::<C::Output>().max(1)
    };
    let input = <[C::Input]>::ref_from_bytes_with_elems(input, count).map_err(misfit)?;
    let output = <[C::Output]>::mut_from_bytes_with_elems(output, count).map_err(misfit)?;
    output.zero();
    C::call(call, &header, input, output, done)
}
