//! Placeholder.
#![no_std]
#![no_main]
use runtime::{exceptions, port, println, user};
runtime::entry!(main);
fn main() -> ! {
    println!("hello from {}", runtime::multiboot::command_line());
    let e = exceptions::catch(|| unsafe { core::arch::asm!("ud2") });
    println!("{:?}", e.map_err(|e| e.vector));
    println!("{:?}", exceptions::catch(|| unsafe { *(0x100_0000_0000 as *const u8) }).unwrap_err());
    extern "C" fn f(x: u64) -> u64 {
        x + 1
    }
    println!("{:?}", unsafe { user::call(f, 41) });
    extern "C" fn g(x: u64) -> u64 {
        unsafe { core::arch::asm!("cli") };
        x + 1
    }
    println!("{}", unsafe { user::call(g, 41) }.unwrap_err());
    println!("{:?}", runtime::interface::detect());
    println!("{:?}", exceptions::catch(|| panic!("boo")).map_err(|e| e.vector));
    port::exit(0)
}
