//! Reads the processor time and the memory of a process.

use std::fs;
use std::time::Duration;

/// Processor time of the threads of a process so far, in user and kernel mode.
pub(crate) fn processor_time(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process' threads");
    threads
        .flatten()
        // A thread may have ended since the folder was read.
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .map(|times| {
            let nanoseconds = times.split(' ').next().and_then(|number| number.parse().ok());
            Duration::from_nanos(nanoseconds.expect("a number of nanoseconds"))
        })
        .sum()
}

/// Memory of a process now, in MiB.
pub(crate) fn resident_mebibytes(pid: i32) -> u64 {
    memory(pid, "VmRSS:")
}

/// Maximum memory of a process so far, in MiB.
pub(crate) fn peak_mebibytes(pid: i32) -> u64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process' status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("its memory");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
        / 1024
}
