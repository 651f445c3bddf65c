//! bzImage files and the boot parameters of Linux.

use super::*;
use crate::acpi;

/// Where our kernel wants to be, and how much it wants there.
const PREFERRED: u64 = 16 * MIB;
const INIT_SIZE: u64 = 4 * MIB;
/// Its command line, without the zero.
const COMMAND_LINE_BYTES: u32 = 63;
/// The last address where it looks for an initial RAM file system.
const INITRD_MAX: u32 = 0x7FFF_FFFF;

/// A bzImage: two sectors of setup, then 0x1000 bytes of 0xCD.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file.resize(0x1400, 0xCD);
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]); // setup_sects
    put(0x1F4, &0x100u32.to_le_bytes()); // syssize
    put(0x1FE, &[0x55, 0xAA]);
    put(0x200, &[0xEB, 0x6A]); // jump
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes()); // version
    put(0x211, &[0xC1]); // loadflags: high, and what only matters to 16-bit code
    put(0x22C, &INITRD_MAX.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x236, &1u16.to_le_bytes()); // xloadflags
    put(0x238, &COMMAND_LINE_BYTES.to_le_bytes());
    put(0x248, &0x10u32.to_le_bytes()); // payload_offset
    put(0x24C, &0xFF0u32.to_le_bytes()); // payload_length
    put(0x258, &PREFERRED.to_le_bytes());
    put(0x260, &(INIT_SIZE as u32).to_le_bytes());
    file
}

fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

fn plan<'a>(file: &'a [u8], memory: u64, arguments: &Arguments<'a>) -> Result<Layout<'a>, LayoutError> {
    Layout::plan(&Image::parse(file).unwrap(), &MemoryMap::new(memory).unwrap(), arguments)
}

/// Bytes of what lies at an address.
fn at<'l>(layout: &'l Layout<'_>, address: u64) -> &'l [u8] {
    let found = |block: &&Block<'_>| (block.start..block.start + block.bytes.len() as u64).contains(&address);
    let block = layout.blocks.iter().find(found).unwrap();
    &block.bytes[(address - block.start) as usize..]
}

fn number<const BYTES: usize>(bytes: &[u8], offset: usize) -> u64 {
    let mut whole = [0; 8];
    whole[..BYTES].copy_from_slice(&bytes[offset..offset + BYTES]);
    u64::from_le_bytes(whole)
}

#[test]
fn the_kernel_is_loaded_where_it_wants_and_entered_at_its_64_bit_entry() {
    let file = bzimage();
    let image = Image::parse(&file).unwrap();
    assert!(matches!(image.protocol, Protocol::Linux(_)));
    assert_eq!(image.entry, PREFERRED + 0x200);
    assert_eq!(image.segments, [Segment { start: PREFERRED, size: INIT_SIZE, bytes: &[0xCD; 0x1000] }]);
}

#[test]
fn the_boot_parameters_say_what_the_guest_is_started_with() {
    let file = bzimage();
    let initramfs = [7; 5000];
    let arguments =
        Arguments { command_line: "console=ttyS0", initramfs: Some(&initramfs), processors: 2, ..Arguments::default() };
    let layout = plan(&file, 5 * GIB, &arguments).unwrap();
    let Start::Linux { parameters, .. } = layout.start else { panic!("not Linux") };
    let parameters = at(&layout, parameters);
    assert_eq!(parameters.len(), 4096);

    // The header goes along, with what the loader fills in.
    assert_eq!(&parameters[0x202..0x206], b"HdrS");
    assert_eq!(parameters[0x210], 0xFF, "type_of_loader");
    assert_eq!(parameters[0x211], 0x01, "loadflags");
    assert_eq!(number::<4>(parameters, 0x260), INIT_SIZE);
    assert_eq!(parameters[0x1EF], 0, "sentinel");
    assert!(parameters[0x26C..0x2D0].iter().all(|&byte| byte == 0));

    let command_line = at(&layout, number::<4>(parameters, 0x228));
    assert!(command_line.starts_with(b"console=ttyS0\0"));
    // As high as the kernel allows, page-aligned.
    let ramdisk = number::<4>(parameters, 0x218);
    assert_eq!((ramdisk, number::<4>(parameters, 0x21C)), (0x7FFF_E000, 5000));
    assert_eq!(at(&layout, ramdisk), initramfs);
    let rsdp = number::<8>(parameters, 0x70);
    assert!(acpi::AREA.contains(&rsdp) && at(&layout, rsdp).starts_with(b"RSD PTR "));

    assert_eq!(parameters[0x1E8], 4);
    let entry = |index: usize| {
        let offset = 0x2D0 + index * 20;
        (number::<8>(parameters, offset), number::<8>(parameters, offset + 8), number::<4>(parameters, offset + 16))
    };
    assert_eq!(entry(0), (0, 0x9_FC00, 1));
    assert_eq!(entry(1), (0x9_FC00, 0x6_0400, 2));
    assert_eq!(entry(2), (MIB, 3 * GIB - MIB, 1));
    assert_eq!(entry(3), (4 * GIB, 2 * GIB, 1));
}

#[test]
fn behind_a_secure_kernel_linux_is_told_to_leave_its_memory_alone() {
    let elf = ElfFile { kind: 3, ..ElfFile::elf64() }.bytes();
    let mut map = MemoryMap::new(64 * MIB).unwrap();
    let arguments = SecureArguments { command_line: "", memory: 4 * MIB, processors: 1 };
    let secure = SecureKernel::plan(&SecureImage::parse(&elf).unwrap(), &mut map, &arguments).unwrap();
    let file = bzimage();
    let arguments = Arguments { initramfs: Some(&[7]), secure: Some(&secure), ..Arguments::default() };
    let layout = Layout::plan(&Image::parse(&file).unwrap(), &map, &arguments).unwrap();
    let Start::Linux { parameters, .. } = layout.start else { panic!("not Linux") };
    let told = at(&layout, parameters);
    assert_eq!((number::<8>(told, 0x2F8), number::<8>(told, 0x300), told[0x308]), (MIB, 59 * MIB, 1));
    assert_eq!((number::<8>(told, 0x30C), number::<8>(told, 0x314), told[0x31C]), (60 * MIB, 4 * MIB, 2));
    assert!(number::<4>(told, 0x218) < 60 * MIB, "the initial RAM file system lies below");
    // mov rsi, parameters; mov rax, kernel; jmp rax
    let entry = at(&layout, layout.entry);
    assert_eq!((&entry[..2], number::<8>(entry, 2)), (&[0x48, 0xBE][..], parameters));
    assert_eq!((&entry[10..12], number::<8>(entry, 12)), (&[0x48, 0xB8][..], PREFERRED + 0x200));
    assert_eq!(&entry[20..], [0xFF, 0xE0]);
    assert_eq!(layout.first_vtl.as_ref().unwrap().contexts.len(), 1);
    assert!(secure.blocks().iter().all(|block| layout.blocks.contains(block)));

    let arguments = Arguments { secure: Some(&secure), ..Arguments::default() };
    let elf = ElfFile::elf64().bytes();
    let other = Layout::plan(&Image::parse(&elf).unwrap(), &map, &arguments);
    assert_eq!(other.unwrap_err(), LayoutError::NoSecureKernel);
    let mut map = MemoryMap::new(20 * MIB).unwrap();
    map.reserve_top(2 * MIB, 2 * MIB);
    let beside = Layout::plan(&Image::parse(&file).unwrap(), &map, &Arguments::default());
    assert_eq!(beside.unwrap_err(), LayoutError::SecureMemory(PREFERRED..20 * MIB));
}

#[test]
fn without_an_initial_ram_file_system_there_is_none() {
    let file = bzimage();
    let layout = plan(&file, 64 * MIB, &Arguments::default()).unwrap();
    let Start::Linux { parameters, .. } = layout.start else { panic!("not Linux") };
    assert_eq!(number::<8>(at(&layout, parameters), 0x218), 0);
}

#[test]
fn kernels_without_a_64_bit_entry_are_refused() {
    let error = |file: &[u8]| Image::parse(file).unwrap_err();
    assert_eq!(error(&changed(0x206, &[0x0B, 0x02])), ImageError::Linux32(2, 11));
    assert_eq!(error(&changed(0x236, &[0])), ImageError::Linux32(2, 15));
    assert_eq!(error(&changed(0x211, &[0])), ImageError::Linux32(2, 15));
    assert_eq!(error(&changed(0x202, b"hDRs")), ImageError::Unrecognized);
}

#[test]
fn damaged_kernels_are_refused() {
    let file = bzimage();
    let error = |file: &[u8]| Image::parse(file).unwrap_err();
    assert_eq!(error(&file[..0x13FF]), ImageError::TruncatedKernel);
    assert_eq!(error(&file[..0x300]), ImageError::TruncatedKernel);
    assert_eq!(error(&file[..0x208]), ImageError::TruncatedHeaders);
    assert_eq!(error(&changed(0x24C, &0xFF1u32.to_le_bytes())), ImageError::TruncatedKernel);
    assert_eq!(error(&changed(0x258, &(u64::MAX - MIB).to_le_bytes())), ImageError::SegmentWraps(0));
    // Without a number of setup sectors there are four, and then too little of the kernel.
    assert_eq!(error(&changed(0x1F1, &[0])), ImageError::TruncatedKernel);
}

#[test]
fn what_linux_cannot_be_given_is_told() {
    let file = bzimage();
    let error = |memory, arguments: &Arguments<'_>| plan(&file, memory, arguments).unwrap_err();
    assert_eq!(error(19 * MIB, &Arguments::default()), LayoutError::LinuxOutside(20 * MIB));
    let text = "x".repeat(64);
    let long = Arguments { command_line: &text, ..Arguments::default() };
    assert_eq!(error(64 * MIB, &long), LayoutError::CommandLine { bytes: 64, most: 63 });
    assert!(plan(&file, 64 * MIB, &Arguments { command_line: &text[1..], ..long }).is_ok());
    let large = vec![0; 16 * MIB as usize];
    let initramfs = Arguments { initramfs: Some(&large), ..Arguments::default() };
    assert_eq!(error(32 * MIB, &initramfs), LayoutError::Initramfs { bytes: 16 << 20, limit: 0x8000_0000 });
    let modules = [Module { bytes: &[1], string: "" }];
    assert_eq!(error(64 * MIB, &Arguments { modules: &modules, ..Arguments::default() }), LayoutError::NoModules);

    let elf = ElfFile::elf64().bytes();
    let initramfs = Arguments { initramfs: Some(&[0]), ..Arguments::default() };
    assert_eq!(plan(&elf, 64 * MIB, &initramfs).unwrap_err(), LayoutError::NoInitramfs);
}

proptest! {
    #[test]
    fn damage_to_the_header_never_panics(damage in prop::collection::vec((0x1F0usize..0x270, any::<u8>()), 0..6)) {
        let mut file = bzimage();
        for (offset, value) in damage {
            file[offset] = value;
        }
        load(&file)?;
    }
}
