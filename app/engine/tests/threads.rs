//! Where the work is done. One test in its own process, so that nothing else uses processor time.

mod common;

use common::{i32s, read};
use inferd_engine::{AlignedBuffer, CpuEngine, Engine};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    time::{ClockId, clock_gettime},
};

#[allow(clippy::unwrap_used)]
fn nanos(clock: ClockId) -> i64 {
    clock_gettime(clock).unwrap().num_nanoseconds()
}

#[test]
fn inside_a_worker_a_session_computes_on_the_workers_own_thread() {
    let dir = read("fault-slow");
    let (mut thread, mut process, mut waits) = (0, 0, 0);
    CpuEngine::new().worker(Box::new(|| {
        let mut runner = dir.runner();
        let input = AlignedBuffer::copy_of(&i32s(&[50]));
        let mut output = AlignedBuffer::zeroed(dir.manifest.outputs[0].byte_len());
        let mut once = || runner.run(&[input.as_bytes()], &mut [output.as_mut_bytes()]).unwrap();
        once();
        let before = (
            nanos(ClockId::CLOCK_THREAD_CPUTIME_ID),
            nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID),
            getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches(),
        );
        (0..100).for_each(|_| once());
        thread = nanos(ClockId::CLOCK_THREAD_CPUTIME_ID) - before.0;
        process = nanos(ClockId::CLOCK_PROCESS_CPUTIME_ID) - before.1;
        waits = getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches() - before.2;
    }));
    assert_eq!(waits, 0, "it waited for another thread");
    assert!(thread * 100 >= process * 98, "other threads used {} of {process} ns", process - thread);
}
