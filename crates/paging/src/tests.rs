//! The walk against a second formulation that follows the manual's tables one mode at a time, and single rules.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    Access, ControlRegisters, EntryMemory, Mode, PageFault, PageFaultCause, Paging, Privilege, Translation, WalkError,
};

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const XD: u64 = 1 << 63;

const LONG: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const PG: u64 = 1 << 31 | 1;
const WP: u64 = 1 << 16;
const PAE: u64 = 1 << 5;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

const SUPERVISOR: Privilege = Privilege::Supervisor { smap_suspended: false };

/// Memory whose words follow from a seed until they are written.
#[derive(Clone, Default)]
struct Memory {
    seed: u64,
    words: BTreeMap<u64, u64>,
    denied: Option<u64>,
    /// Changes this word to this value just before the first exchange.
    race: Option<(u64, u64)>,
    exchanges: u32,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Denied {
    gpa: u64,
    write: bool,
}

impl Memory {
    fn new(words: &[(u64, u64)]) -> Self {
        Self { words: words.iter().copied().collect(), ..Self::default() }
    }

    /// Mostly present entries that point to other tables nearby, with all bits that matter now and then.
    fn invented(&self, gpa: u64) -> u64 {
        let mut value = (gpa ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = move |range: u64| {
            value ^= value >> 31;
            value = value.wrapping_mul(0xD6E8_FEB8_6659_FD93).wrapping_add(1);
            (value >> 20) % range
        };
        let mut entry = random(64) << 12 | random(4096) & !PS;
        entry |= if random(12) != 0 { P } else { 0 };
        entry |= if random(4) != 0 { US | RW } else { 0 };
        entry |= if random(4) == 0 { PS } else { 0 };
        if entry & PS != 0 && random(4) != 0 {
            entry = entry & 0xFFF | random(64) << 30 | random(2) << 12;
        }
        entry |= if random(10) == 0 { XD } else { 0 };
        entry |= if random(20) == 0 { 1 << random(64) } else { 0 };
        entry
    }

    fn word(&self, gpa: u64, size: u8) -> u64 {
        let word = self.words.get(&gpa).copied().unwrap_or_else(|| self.invented(gpa));
        if size == 4 { word & 0xFFFF_FFFF } else { word }
    }
}

impl EntryMemory for Memory {
    type Error = Denied;

    fn read_entry(&mut self, gpa: u64, size: u8) -> Result<u64, Denied> {
        assert_eq!(gpa % u64::from(size), 0);
        if self.denied == Some(gpa) { Err(Denied { gpa, write: false }) } else { Ok(self.word(gpa, size)) }
    }

    fn compare_exchange_entry(&mut self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, Denied> {
        if let Some((gpa, value)) = self.race.take() {
            self.words.insert(gpa, value);
        }
        if self.denied == Some(gpa | 1) {
            return Err(Denied { gpa, write: true });
        }
        let same = self.word(gpa, size) == old;
        if same {
            self.words.insert(gpa, new);
            self.exchanges += 1;
        }
        Ok(same)
    }
}

type Outcome = Result<(Translation, Vec<(u64, u64)>), u32>;

/// One way through the tables, spelled out per mode as figures 5-2 to 5-11 of the manual do.
struct Naive<'a> {
    memory: &'a Memory,
    registers: ControlRegisters,
    width: u32,
    entries: Vec<(u64, u64)>,
}

impl Naive<'_> {
    fn entry(&mut self, table: u64, index: u64, size: u64) -> Result<u64, u32> {
        let gpa = table + index * size;
        let entry = self.memory.word(gpa, size as u8);
        if entry & P == 0 {
            return Err(0);
        }
        self.entries.push((gpa, entry));
        Ok(entry)
    }

    fn no_execute(&self) -> bool {
        self.registers.cr4 & PAE != 0 && self.registers.efer & NXE != 0
    }

    fn must_be_clear(&self, entry: u64, from: u32, to: u32) -> Result<(), u32> {
        for bit in from..=to {
            if entry >> bit & 1 != 0 {
                return Err(9);
            }
        }
        Ok(())
    }

    fn wide(&self, entry: u64, long: bool) -> Result<(), u32> {
        self.must_be_clear(entry, self.width, if long { 51 } else { 62 })?;
        if !self.no_execute() { self.must_be_clear(entry, 63, 63) } else { Ok(()) }
    }

    fn address(entry: u64, from: u32) -> u64 {
        (entry & 0x000F_FFFF_FFFF_FFFF) >> from << from
    }

    fn find(&mut self, linear: u64) -> Result<(u64, u8), u32> {
        let ControlRegisters { cr3, cr4, efer, pdptes, .. } = self.registers;
        if cr4 & PAE == 0 {
            let pde = self.entry(cr3 & 0xFFFF_F000, linear >> 22 & 0x3FF, 4)?;
            if pde & PS != 0 && cr4 & 0x10 != 0 {
                self.must_be_clear(pde, 21, 21)?;
                if self.width < 40 {
                    self.must_be_clear(pde, 13 + self.width - 32, 20)?;
                }
                return Ok(((pde >> 22 & 0x3FF) << 22 | (pde >> 13 & 0xFF) << 32 | linear & 0x3F_FFFF, 22));
            }
            let pte = self.entry(pde & 0xFFFF_F000, linear >> 12 & 0x3FF, 4)?;
            return Ok((pte & 0xFFFF_F000 | linear & 0xFFF, 12));
        }
        let long = efer & LONG != 0;
        let directory = if long {
            let mut table = Self::address(cr3, 12);
            if cr4 & 0x1000 != 0 {
                let pml5e = self.entry(table, linear >> 48 & 0x1FF, 8)?;
                self.wide(pml5e, true)?;
                self.must_be_clear(pml5e, 7, 7)?;
                table = Self::address(pml5e, 12);
            }
            let pml4e = self.entry(table, linear >> 39 & 0x1FF, 8)?;
            self.wide(pml4e, true)?;
            self.must_be_clear(pml4e, 7, 7)?;
            let pdpte = self.entry(Self::address(pml4e, 12), linear >> 30 & 0x1FF, 8)?;
            self.wide(pdpte, true)?;
            if pdpte & PS != 0 {
                self.must_be_clear(pdpte, 13, 29)?;
                return Ok((Self::address(pdpte, 30) | linear & 0x3FFF_FFFF, 30));
            }
            pdpte
        } else {
            let pdpte = pdptes[(linear >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(0);
            }
            pdpte
        };
        let pde = self.entry(Self::address(directory, 12), linear >> 21 & 0x1FF, 8)?;
        self.wide(pde, long)?;
        if pde & PS != 0 {
            self.must_be_clear(pde, 13, 20)?;
            return Ok((Self::address(pde, 21) | linear & 0x1F_FFFF, 21));
        }
        let pte = self.entry(Self::address(pde, 12), linear >> 12 & 0x1FF, 8)?;
        self.wide(pte, long)?;
        Ok((Self::address(pte, 12) | linear & 0xFFF, 12))
    }

    fn translate(mut self, linear: u64, access: Access, privilege: Privilege) -> Outcome {
        let ControlRegisters { cr0, cr4, .. } = self.registers;
        let user_mode = privilege == Privilege::User;
        let mut code = if access == Access::WRITE { 2 } else { 0 };
        code |= if user_mode { 4 } else { 0 };
        code |= if access == Access::EXECUTE && (self.no_execute() || cr4 & SMEP != 0) { 0x10 } else { 0 };
        let (gpa, page_shift) = self.find(linear).map_err(|cause| cause | code)?;

        let user = self.entries.iter().all(|(_, entry)| entry & US != 0);
        let writable = self.entries.iter().all(|(_, entry)| entry & RW != 0);
        let executable = !self.no_execute() || self.entries.iter().all(|(_, entry)| entry & XD == 0);
        let write = access == Access::WRITE;
        let execute = access == Access::EXECUTE;
        let allowed = match (user_mode, user) {
            (true, false) => false,
            (true, true) => (!write || writable) && (!execute || executable),
            (false, true) if execute => executable && cr4 & SMEP == 0,
            (false, true) if cr4 & SMAP != 0 && privilege == SUPERVISOR && !access.is_empty() => false,
            (false, _) => (!write || writable || cr0 & WP == 0) && (!execute || executable),
        };
        if !allowed {
            return Err(code | 1);
        }

        let leaf = self.entries.last().unwrap().1;
        let pat = leaf & if page_shift == 12 { 0x80 } else { 0x1000 } != 0;
        let translation = Translation {
            gpa,
            page_shift,
            writable,
            user,
            executable,
            global: leaf & G != 0 && cr4 & 0x80 != 0,
            dirty: leaf & D != 0 || write,
            pat_index: ((leaf & 0x18) >> 3) as u8 + if pat { 4 } else { 0 },
        };
        Ok((translation, self.after(write)))
    }

    /// The entries after the walk has set accessed and dirty bits. Tables may be used twice in one walk.
    fn after(&self, write: bool) -> Vec<(u64, u64)> {
        let last = self.entries.len() - 1;
        let mut after = self.entries.clone();
        for (index, (_, entry)) in after.iter_mut().enumerate() {
            *entry |= if index == last && write { A | D } else { A };
        }
        after
    }
}

fn registers() -> impl Strategy<Value = (ControlRegisters, u8)> {
    let cr4 = prop_oneof![Just(0), Just(0x10), Just(PAE), Just(PAE), Just(PAE | 0x1000)];
    (cr4, any::<[bool; 6]>(), any::<[u8; 4]>(), 0u64..64, prop_oneof![Just(36u8), Just(40), Just(46), Just(52)])
        .prop_map(|(mut cr4, flags, tables, root, width)| {
            let [write_protect, smep, smap, global, nxe, long] = flags;
            let long = cr4 & PAE != 0 && long;
            cr4 &= if long { u64::MAX } else { !0x1000 };
            cr4 |= u64::from(smep) << 20 | u64::from(smap) << 21 | u64::from(global) << 7;
            let registers = ControlRegisters {
                cr0: PG | u64::from(write_protect) << 16,
                cr3: root << 12 | 0x18,
                cr4,
                efer: u64::from(long) << 10 | u64::from(nxe) << 11,
                pdptes: tables.map(|table| u64::from(table & 63) << 12 | u64::from(table >> 7 ^ 1)),
            };
            (registers, width)
        })
}

fn privileges() -> impl Strategy<Value = Privilege> {
    prop_oneof![Just(Privilege::User), Just(SUPERVISOR), Just(Privilege::Supervisor { smap_suspended: true })]
}

fn accesses() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::READ), Just(Access::WRITE), Just(Access::EXECUTE), Just(Access::empty())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn agrees_with_the_manuals_tables(
        (registers, width) in registers(), seed: u64, linear: u64, access in accesses(), privilege in privileges(),
    ) {
        let paging = Paging::new(&registers, width);
        // Rights of no access are not checked; the second formulation checks presence of user rights then.
        prop_assume!(!access.is_empty() || privilege != Privilege::User);
        let mut memory = Memory { seed, ..Memory::default() };
        let naive = Naive { memory: &memory.clone(), registers, width: u32::from(width), entries: Vec::new() }
            .translate(linear, access, privilege);
        match (paging.translate(&mut memory, linear, access, privilege, true), naive) {
            (Ok(translation), Ok((expected, after))) => {
                prop_assert_eq!(translation, expected);
                for (gpa, entry) in after {
                    prop_assert_eq!(memory.word(gpa, 8) & entry & 0xFFFF_FFFF, entry & 0xFFFF_FFFF);
                }
            }
            (Err(WalkError::PageFault(fault)), Err(code)) => {
                prop_assert_eq!(fault.error_code, code);
                prop_assert_eq!(memory.exchanges, 0);
            }
            (ours, naive) => prop_assert!(false, "{ours:?} but {naive:?}"),
        }
    }

    #[test]
    fn never_panics_and_never_writes_unasked(
        cr0: u64, cr3: u64, cr4: u64, efer: u64, pdptes: [u64; 4], width: u8, seed: u64, linear: u64,
        access in accesses(), privilege in privileges(),
    ) {
        let paging = Paging::new(&ControlRegisters { cr0, cr3, cr4, efer, pdptes }, width);
        let mut memory = Memory { seed, ..Memory::default() };
        let _ = paging.translate(&mut memory, linear, access, privilege, false);
        prop_assert_eq!(memory.exchanges, 0);
        let _ = paging.translate(&mut memory, linear, access, privilege, true);
        let _ = Paging::is_invalid_pdpte(seed, width);
    }
}

const LINEAR: u64 = 0x0000_0080_4020_1ABC;

/// 4-level tables at 0x1000 to 0x4000 that map [`LINEAR`] to 0x9ABC with `leaf` added to its entry.
fn four_level(leaf: u64) -> Memory {
    Memory::new(&[
        (0x1008, 0x2000 | P | RW | US),
        (0x2008, 0x3000 | P | RW | US),
        (0x3008, 0x4000 | P | RW | US),
        (0x4008, 0x9000 | P | leaf),
    ])
}

fn long_mode(cr0: u64, cr4: u64, efer: u64) -> Paging {
    let registers = ControlRegisters { cr0: PG | cr0, cr3: 0x1000, cr4: PAE | cr4, efer: LONG | efer, pdptes: [0; 4] };
    Paging::new(&registers, 40)
}

fn error_code(result: Result<Translation, WalkError<Denied>>) -> u32 {
    match result {
        Err(WalkError::PageFault(fault)) => fault.error_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_write_sets_accessed_everywhere_and_dirty_in_the_leaf() {
    let mut memory = four_level(RW);
    let page = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::WRITE, SUPERVISOR, true).unwrap();
    assert_eq!((page.gpa, page.page_shift, page.dirty), (0x9ABC, 12, true));
    for gpa in [0x1008, 0x2008, 0x3008] {
        assert_eq!(memory.word(gpa, 8) & (A | D), A);
    }
    assert_eq!(memory.word(0x4008, 8) & (A | D), A | D);
    assert_eq!(memory.exchanges, 4);
    let _ = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::WRITE, SUPERVISOR, true);
    assert_eq!(memory.exchanges, 4, "bits that are set are not written again");
}

#[test]
fn write_protect_binds_the_supervisor_only_when_set() {
    let mut memory = four_level(0);
    assert!(long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::WRITE, SUPERVISOR, true).is_ok());
    let denied = long_mode(WP, 0, 0).translate(&mut memory, LINEAR, Access::WRITE, SUPERVISOR, true);
    assert_eq!(error_code(denied), 3);
    let user = long_mode(0, 0, 0).translate(&mut four_level(US), LINEAR, Access::WRITE, Privilege::User, true);
    assert_eq!(error_code(user), 7);
}

#[test]
fn smap_and_smep_keep_the_supervisor_from_user_pages() {
    let paging = long_mode(0, SMAP | SMEP, 0);
    let mut memory = four_level(US);
    assert_eq!(error_code(paging.translate(&mut memory, LINEAR, Access::READ, SUPERVISOR, true)), 1);
    assert_eq!(error_code(paging.translate(&mut memory, LINEAR, Access::EXECUTE, SUPERVISOR, true)), 0x11);
    let suspended = Privilege::Supervisor { smap_suspended: true };
    assert!(paging.translate(&mut memory, LINEAR, Access::READ, suspended, true).is_ok());
    assert_eq!(error_code(paging.translate(&mut memory, LINEAR, Access::EXECUTE, suspended, true)), 0x11);
}

#[test]
fn execute_disable_is_reserved_until_enabled() {
    let mut memory = four_level(US | XD);
    let enabled = long_mode(0, 0, NXE);
    assert_eq!(error_code(enabled.translate(&mut memory, LINEAR, Access::EXECUTE, Privilege::User, true)), 0x15);
    assert!(enabled.translate(&mut memory, LINEAR, Access::READ, Privilege::User, true).is_ok());
    let disabled = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::READ, Privilege::User, true);
    let Err(WalkError::PageFault(fault)) = disabled else { panic!() };
    assert_eq!((fault.error_code, fault.cause()), (13, PageFaultCause::ReservedBit));
}

#[test]
fn an_entry_that_is_not_present_hides_its_reserved_bits() {
    let mut memory = four_level(0);
    memory.words.insert(0x3008, !P);
    let Err(WalkError::PageFault(fault)) =
        long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::READ, SUPERVISOR, true)
    else {
        panic!()
    };
    assert_eq!(fault, PageFault { error_code: 0 });
    assert_eq!(fault.cause(), PageFaultCause::NotPresent);
}

#[test]
fn errors_of_the_memory_are_told_apart_from_page_faults() {
    let mut memory = four_level(RW);
    memory.denied = Some(0x3008);
    let read = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::READ, SUPERVISOR, true);
    assert_eq!(read, Err(WalkError::Memory(Denied { gpa: 0x3008, write: false })));
    memory.denied = Some(0x4008 | 1);
    let update = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::READ, SUPERVISOR, true);
    assert_eq!(update, Err(WalkError::Memory(Denied { gpa: 0x4008, write: true })));
}

#[test]
fn an_entry_that_changes_under_the_walk_is_walked_again() {
    let mut memory = four_level(RW);
    memory.race = Some((0x4008, 0x7000 | P | RW));
    let page = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::WRITE, SUPERVISOR, true).unwrap();
    assert_eq!(page.gpa, 0x7ABC);
    assert_eq!(memory.word(0x4008, 8), 0x7000 | P | RW | A | D);
}

#[test]
fn a_page_without_rights_is_found_when_none_are_asked_for() {
    let mut memory = four_level(0);
    let page = long_mode(0, 0, 0).translate(&mut memory, LINEAR, Access::empty(), Privilege::User, false).unwrap();
    assert_eq!((page.gpa, page.user, page.writable), (0x9ABC, false, false));
}

#[test]
fn canonical_addresses_depend_on_the_mode() {
    let four = long_mode(0, 0, 0);
    assert!(four.is_canonical(0x7FFF_FFFF_FFFF) && four.is_canonical(0xFFFF_8000_0000_0000));
    assert!(!four.is_canonical(0x8000_0000_0000) && !four.is_canonical(0x7FFF_8000_0000_0000));
    let five = long_mode(0, 0x1000, 0);
    assert_eq!(five.mode(), Mode::FiveLevel);
    assert!(five.is_canonical(0x8000_0000_0000) && !five.is_canonical(0x0100_0000_0000_0000));
}

#[test]
fn reserved_bits_of_pdptes() {
    assert!(!Paging::is_invalid_pdpte(0x1000 | P | 0x18, 40));
    assert!(Paging::is_invalid_pdpte(0x1000 | P | RW, 40));
    assert!(Paging::is_invalid_pdpte(1 << 40 | P, 40));
    assert!(!Paging::is_invalid_pdpte(1 << 40, 40), "not present");
}

#[test]
fn without_paging_linear_is_physical() {
    let registers = ControlRegisters { cr0: 1, cr3: 0x1000, cr4: 0, efer: 0, pdptes: [0; 4] };
    let paging = Paging::new(&registers, 40);
    let page = paging.translate(&mut Memory::default(), 0x1_1234_5678, Access::WRITE, Privilege::User, true).unwrap();
    assert_eq!(page.gpa, 0x1234_5678);
}
