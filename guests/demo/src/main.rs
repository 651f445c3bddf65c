//! A guest in which VTL0 starts a tiny secure kernel in VTL1, lets it sign messages, and then attacks it.
//!
//! Lines that begin with `@` are the timeline; see the guests' README. The last line is `demo passed` or
//! `demo failed: <reason>`, and the exit code is 0 or 1.
#![no_std]
#![no_main]

mod attacks;
mod secure_kernel;
mod siphash;
mod timeline;

use core::fmt::Arguments;

use runtime::hypercall::{RBX, RDI, RDX, RSI, Registers};
use runtime::{interface, port, println, vtl};
use tlfs::{InputVtl, RegisterName};

use crate::secure_kernel::{DONE, Service};
use crate::timeline::tell;

/// Exit code: the story went as it should.
const EXIT_PASSED: u8 = 0;
/// Exit code: it did not.
const EXIT_FAILED: u8 = 1;
/// Exit code: there is no Virtual Secure Mode here.
const EXIT_SKIPPED: u8 = 2;

runtime::entry!(main);

fn fail(reason: Arguments<'_>) -> ! {
    println!("demo failed: {reason}");
    port::exit(EXIT_FAILED)
}

/// Sixteen bytes to be signed.
type Text = [u8; 16];

/// Asks the secure kernel for a service by a VTL call; returns RBX and RDX.
fn request(service: Service, message: Text, signature: u64) -> (u64, u64) {
    let (words, _) = message.as_chunks::<8>();
    let mut registers = Registers::default();
    registers.general[RBX] = service as u64;
    registers.general[RSI] = u64::from_le_bytes(words[0]);
    registers.general[RDI] = u64::from_le_bytes(words[1]);
    registers.general[RDX] = signature;
    vtl::call(&mut registers);
    (registers.general[RBX], registers.general[RDX])
}

fn sign(message: Text) -> u64 {
    match request(Service::Sign, message, 0) {
        (DONE, signature) => signature,
        (status, _) => fail(format_args!("the secure kernel refused to sign ({status})")),
    }
}

fn verify(message: Text, signature: u64) -> bool {
    request(Service::Verify, message, signature).0 == DONE
}

fn show(message: &Text) -> &str {
    str::from_utf8(message).unwrap_or("?")
}

fn main() -> ! {
    println!("OpenVSM demo: a secret that the operating system cannot reach");
    if let Err(absent) = interface::detect() {
        println!("demo skipped: {absent}");
        port::exit(EXIT_SKIPPED);
    }
    interface::enable_hypercalls();
    if let Err(status) = interface::find_vtl_sequences() {
        fail(format_args!("the hypervisor does not tell how to make VTL calls: {status}"));
    }
    let status = runtime::calls::get_register(InputVtl::CURRENT, RegisterName::VsmPartitionStatus).unwrap_or(0);
    tell!(
        "start",
        "the ordinary kernel runs; enabled VTLs: {:#06b}, highest VTL possible: {}",
        status & 0xFFFF,
        status >> 16 & 0xF
    );

    println!("\nThe kernel starts a secure kernel in VTL1 and hands it control for a moment.");
    if let Err(status) = secure_kernel::launch() {
        fail(format_args!("VTL1 cannot be started: {status}"));
    }
    let forbidden = attacks::plant_code();
    let mut page = [0; 16];
    page[..8].copy_from_slice(&(forbidden as u64).to_le_bytes());
    if request(Service::Start, page, 0).0 != DONE {
        fail(format_args!("the secure kernel could not protect itself"));
    }

    println!("\nThe kernel has messages signed with a key that it cannot see.");
    let (pay, forged) = (*b"pay Bob 10 coins", *b"pay Eve 99 coins");
    let signature = sign(pay);
    tell!("signed", "\"{}\" -> {signature:016x}", show(&pay));
    if !verify(pay, signature) || verify(forged, signature) {
        fail(format_args!("signatures do not tell messages apart"));
    }
    tell!("verified", "\"{}\" is genuine; \"{}\" with the same signature is not", show(&pay), show(&forged));

    println!("\nNow the kernel is taken over, and turns against VTL1.");
    attacks::read_secret();
    attacks::overwrite_code();
    attacks::execute_forbidden_page(forbidden);
    attacks::ask_for_registers();

    println!("\nAfter all that:");
    if sign(pay) != signature {
        fail(format_args!("the key has changed"));
    }
    tell!("survived", "\"{}\" still gets the signature {signature:016x}: key and code are untouched", show(&pay));
    println!("\ndemo passed");
    port::exit(EXIT_PASSED)
}
