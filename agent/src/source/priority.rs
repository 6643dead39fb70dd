//! Low priority at processor and disk, so that a backup is not noticed.

use std::io;

use rustix::process::{getpid, setpriority_process};

use crate::config::sections::{IoPriority, Process};

/// Lowers the priority of the calling thread, and of what it starts from now on. Never raises it again: use a thread of
/// one's own.
pub fn lower_this_thread(wanted: &Process) -> io::Result<()> {
    // On Linux a priority belongs to a thread, whatever POSIX says; no id means the calling one.
    setpriority_process(None, wanted.nice())?;
    set_io_priority(wanted.io)
}

/// Sets the I/O priority of the calling thread (`ioprio_set(2)`; no library has it).
#[allow(unsafe_code)]
fn set_io_priority(wanted: IoPriority) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let value: libc::c_int = match wanted {
        IoPriority::Normal => return Ok(()),
        IoPriority::Low => (2 << CLASS_SHIFT) | 7, // best effort, the last of its eight levels
        IoPriority::Idle => 3 << CLASS_SHIFT,
    };
    // SAFETY: a system call with three integers; it touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `command`'s child low in priority, and mortal with this process.
///
/// The death signal is sent when the *thread* that started the child ends, so start it from one that does not.
#[allow(unsafe_code)]
pub fn prepare_child(command: &mut tokio::process::Command, wanted: Process) {
    let parent = getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died between fork and prctl: then nobody would ever send that signal.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // A sandbox may forbid it; a backup at normal priority is better than none.
        let _ = lower_this_thread(&wanted);
        Ok(())
    };
    // SAFETY: between fork and exec only system calls on integers are made: no memory is allocated, no lock taken
    // (`io::Error` from an error number does neither).
    unsafe {
        command.pre_exec(prepare);
    }
}
