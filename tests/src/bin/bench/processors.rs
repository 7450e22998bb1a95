//! Gives the API server and etcd one half of the processors, and this process and those that it
//! starts the other half. In a cluster, the operator and the control plane run on different
//! machines.

use std::fs;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use twofactor_tests::apiserver::ApiServer;

/// The halves, until it is dropped.
pub(crate) struct Apart(());

impl Apart {
    /// Panics if there is only one processor.
    pub(crate) fn start(server: &ApiServer) -> Self {
        let half = count() / 2;
        assert!(half > 0, "there is only one processor");
        for pid in [server.apiserver().id(), server.etcd().id()] {
            keep_to(pid, 0..half);
        }
        keep_to(own(), half..count());
        Self(())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        keep_to(own(), 0..count());
    }
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}

fn count() -> usize {
    let cpus = fs::read_to_string("/proc/cpuinfo").expect("the processors");
    cpus.lines().filter(|line| line.starts_with("processor")).count()
}

/// Keeps the threads of a process to these processors, and with them the threads and processes that
/// they start.
fn keep_to(pid: i32, processors: std::ops::Range<usize>) {
    let mut set = CpuSet::new();
    processors.for_each(|processor| set.set(processor));
    // The second pass finds the threads that others have started during the first one.
    for _ in 0..2 {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process' threads");
        for thread in threads.flatten() {
            let id = thread.file_name().to_str().and_then(|id| id.parse().ok());
            // A thread may have ended since the folder was read.
            sched_setaffinity(id.and_then(Pid::from_raw), &set).ok();
        }
    }
}
