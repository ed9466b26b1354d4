//! The counting allocator: bytes per worker thread, and last words when memory runs out.
#![allow(unsafe_code)]

use crate::ring::WorkerBlock;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// The system allocator with a counter per engine-host worker. In the daemon itself it costs one thread-local read.
///
/// ```no_run
/// #[global_allocator]
/// static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;
/// ```
pub struct CountingAllocator;

thread_local! {
    /// Where this thread's bytes are counted; null on threads that are no workers.
    static BLOCK: Cell<*const WorkerBlock> = const { Cell::new(std::ptr::null()) };
}

/// Where a refused allocation leaves its size (in the ring's header, so that the daemon reads it after the abort).
static REFUSED: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// From now on this thread's allocations are counted in `block`.
pub(crate) fn count_on_this_thread(block: &'static WorkerBlock) {
    BLOCK.with(|b| b.set(block));
}

/// From now on a refused allocation stores its size in `cell`.
pub(crate) fn report_refusals_to(cell: &'static AtomicU64) {
    REFUSED.store(std::ptr::from_ref(cell).cast_mut(), Relaxed);
}

fn count(bytes: isize) {
    // `try_with`: a thread that is going away still frees memory.
    let _ = BLOCK.try_with(|b| {
        // SAFETY: null, or set by `count_on_this_thread` from a reference that lives as long as the process.
        if let Some(block) = unsafe { b.get().as_ref() } {
            block.count(bytes);
        }
    });
}

fn refused(size: usize) {
    // SAFETY: null, or set by `report_refusals_to` from a reference that lives as long as the process.
    if let Some(cell) = unsafe { REFUSED.load(Relaxed).as_ref() } {
        cell.store(size as u64, Relaxed);
    }
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX) // a Layout's size never exceeds isize::MAX
}

// SAFETY: every call is passed on unchanged to the system allocator; counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        let p = unsafe { System.alloc(layout) };
        if p.is_null() {
            refused(layout.size())
        } else {
            count(signed(layout.size()))
        }
        p
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        let p = unsafe { System.alloc_zeroed(layout) };
        if p.is_null() {
            refused(layout.size())
        } else {
            count(signed(layout.size()))
        }
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(p, layout) }
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        let q = unsafe { System.realloc(p, layout, size) };
        if q.is_null() {
            refused(size)
        } else {
            count(signed(size) - signed(layout.size()))
        }
        q
    }
}
