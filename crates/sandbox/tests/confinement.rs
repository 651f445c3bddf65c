//! What confined threads can and cannot do. Each case runs in a process of its own: this program, told its name.

use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::thread;

use sandbox::{EngineNeeds, Role, STATUS, Sandbox};

const SIGSYS: i32 = 31;
const CASE: &str = "SANDBOX_CASE";

/// Runs a test of this program again, alone and with its case asked for.
fn run(test: &str, case: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(["--exact", test, "--nocapture"]).env(CASE, case).output().unwrap()
}

/// The case that this process is to try, if it is one for that.
fn case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// The role that a word names.
fn role(word: &str) -> Role {
    Role::ALL.into_iter().find(|role| format!("{role:?}") == word).unwrap()
}

/// Confines the calling thread, or says why there is no way to.
fn confine(role: Role) {
    Sandbox::new(EngineNeeds::default()).and_then(|sandbox| sandbox.confine(role)).unwrap();
}

#[test]
fn forbidden_calls_end_the_process_with_a_line() {
    if let Some(case) = case() {
        confine(role(&case));
        let _ = TcpListener::bind("127.0.0.1:0");
        return;
    }
    for role in Role::ALL {
        let output = run("forbidden_calls_end_the_process_with_a_line", &format!("{role:?}"));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(STATUS), "{role:?}: {told}");
        // socket(2) has number 41.
        let told: Vec<_> = told.lines().filter(|line| line.starts_with("openvsm: sandbox:")).collect();
        assert_eq!(told.len(), 1, "{role:?}");
        assert!(told[0].contains("made system call 41,") && told[0].contains("--sandbox off"), "{told:?}");
    }
}

#[test]
fn files_and_programs_are_out_of_reach() {
    if let Some(case) = case() {
        if case == "program" {
            confine(Role::Machine);
            let _ = Command::new("/bin/true").status();
            return;
        }
        confine(role(&case));
        let error = File::open("/proc/self/status").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        std::process::exit(11);
    }
    for role in Role::ALL {
        let output = run("files_and_programs_are_out_of_reach", &format!("{role:?}"));
        assert_eq!(output.status.code(), Some(11), "{role:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The C library blocks signals while it starts a program, so nobody is left to tell of it.
    let status = run("files_and_programs_are_out_of_reach", "program").status;
    assert!(status.code() == Some(STATUS) || status.signal() == Some(SIGSYS), "{status}");
}

#[test]
fn no_memory_becomes_executable() {
    if case().is_some() {
        confine(Role::Processor);
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new mappings that nothing uses.
        unsafe {
            mmap_anonymous(std::ptr::null_mut(), 4096, rights, MapFlags::PRIVATE).unwrap();
            let _ = mmap_anonymous(std::ptr::null_mut(), 4096, rights | ProtFlags::EXEC, MapFlags::PRIVATE);
        }
        std::process::exit(11);
    }
    let output = run("no_memory_becomes_executable", "executable");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(STATUS), "{told}");
    assert!(told.contains("a virtual processor's thread made system call 9,"), "{told}");
}

#[test]
fn confined_threads_start_threads_that_confine_themselves_further() {
    if case().is_some() {
        let sandbox = Sandbox::new(EngineNeeds::default()).unwrap();
        sandbox.confine(Role::Machine).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status");
        assert!(status.is_err());
        thread::scope(|scope| {
            for role in [Role::Processor, Role::Timekeeper] {
                let name = thread::Builder::new().name(format!("{role:?}"));
                let sandbox = &sandbox;
                name.spawn_scoped(scope, move || {
                    sandbox.confine(role).unwrap();
                    // Memory, time and locks work.
                    let values: Vec<_> = (0..1_000_000_u64).collect();
                    thread::sleep(std::time::Duration::from_millis(values.len() as u64 / 1_000_000));
                })
                .unwrap();
            }
        });
        std::process::exit(11);
    }
    let output = run("confined_threads_start_threads_that_confine_themselves_further", "threads");
    assert_eq!(output.status.code(), Some(11), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn privileges_are_gone() {
    if case().is_some() {
        let _sandbox = Sandbox::new(EngineNeeds::default()).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(u64::from_str_radix(&line("CapEff:"), 16), Ok(0));
        assert_eq!(u64::from_str_radix(&line("CapPrm:"), 16), Ok(0));
        assert_eq!(line("NoNewPrivs:"), "1");
        std::process::exit(11);
    }
    let output = run("privileges_are_gone", "privileges");
    assert_eq!(output.status.code(), Some(11), "{}", String::from_utf8_lossy(&output.stderr));
}
