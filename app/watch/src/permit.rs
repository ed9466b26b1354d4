//! May something optional be written now? Asked by what records, answered by what watches the wear of the medium and the load.

/// Says whether optional writes are welcome. Asked from threads that write, never from one that answers a request.
pub trait Permit: Send + Sync {
    /// Whether so many bytes may be written within today's budget.
    fn may_write(&self, bytes: u64) -> bool;
    /// So many bytes were written.
    fn wrote(&self, bytes: u64);
    /// Whether the device has more important things to do: optional work is left out for now.
    fn shedding(&self) -> bool;
}

/// Everything is welcome: for a device without a budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Permit for Unlimited {
    fn may_write(&self, _: u64) -> bool {
        true
    }
    fn wrote(&self, _: u64) {}
    fn shedding(&self) -> bool {
        false
    }
}
