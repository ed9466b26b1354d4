//! The allocator of daemon and hosts: counts bytes per worker thread, keeps a worker's scratch memory for its next request,
//! and leaves last words when memory runs out.
//!
//! An inference allocates the same blocks every time. With the system allocator (musl's, and glibc's in a thread's arena)
//! the large ones are unmapped after each request and fault in again at the next: about a fifth of the time of a small
//! sensor model. So a worker keeps what it frees, by size class, and finds it again: after the first request nothing is
//! mapped, unmapped or faulted. It never holds more than a quarter above the most it ever had in use at once, so the cap of
//! a host stays a matter of the model. Threads that are no workers, and the whole daemon, go straight to the system.
#![allow(unsafe_code)]

use crate::ring::WorkerBlock;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// The allocator to be set as `#[global_allocator]` of every program that hosts engines.
///
/// ```no_run
/// #[global_allocator]
/// static ALLOCATOR: inferd_hosts::CountingAllocator = inferd_hosts::CountingAllocator;
/// ```
pub struct CountingAllocator;

/// Size classes: 16, 32, 48, 64, then four per doubling up to 1 GiB.
const CLASSES: usize = 4 + 4 * 24;
/// Blocks from this size on lie on a cache line.
const LINE_FROM: usize = 1024;

/// A worker thread's kept blocks.
struct Kept {
    /// Where this thread's bytes are counted; null on threads that are no workers.
    block: *const WorkerBlock,
    /// Per class a list of free blocks; each holds the address of the next in its first word.
    free: [*mut u8; CLASSES],
    /// Bytes in all lists.
    bytes: usize,
}

thread_local! {
    static KEPT: UnsafeCell<Kept> = const {
        UnsafeCell::new(Kept { block: null(), free: [null_mut(); CLASSES], bytes: 0 })
    };
}

/// Where a refused allocation leaves its size (in the ring's header, so that the daemon reads it after the abort).
static REFUSED: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// From now on this thread is a worker: its allocations are counted in `block` and its scratch memory is kept.
pub(crate) fn this_thread_is_a_worker(block: &'static WorkerBlock) {
    KEPT.with(|k| {
        // SAFETY: this thread's own value; no other reference to it exists, as `with_kept` never calls out.
        unsafe { (*k.get()).block = block };
    });
}

/// From now on this thread keeps its scratch memory like a worker, for programs that call an engine themselves.
pub fn keep_scratch_on_this_thread() {
    this_thread_is_a_worker(Box::leak(Box::default()));
}

/// From now on a refused allocation stores its size in `cell`.
pub(crate) fn report_refusals_to(cell: &'static AtomicU64) {
    REFUSED.store(std::ptr::from_ref(cell).cast_mut(), Relaxed);
}

fn refused(size: usize) {
    // SAFETY: null, or set by `report_refusals_to` from a reference that lives as long as the process.
    if let Some(cell) = unsafe { REFUSED.load(Relaxed).as_ref() } {
        cell.store(size as u64, Relaxed);
    }
}

/// Calls `f` with this thread's kept blocks and counters, when it is a worker.
fn with_kept<T>(f: impl FnOnce(&mut Kept, &WorkerBlock) -> T) -> Option<T> {
    // `try_with`: a thread that is going away still frees memory.
    KEPT.try_with(|k| {
        // SAFETY: this thread's own value. `f` only moves pointers and counts; it neither allocates nor calls back here, so
        // this is the only reference.
        let kept = unsafe { &mut *k.get() };
        // SAFETY: null, or set by `this_thread_is_a_worker` from a reference that lives as long as the process.
        unsafe { kept.block.as_ref() }.map(|block| f(kept, block))
    })
    .ok()
    .flatten()
}

/// The class of a layout and the layout all blocks of that class have; `None` for layouts that are passed on as they are.
/// A function of the layout alone, so that every thread treats a block alike.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size();
    let (index, rounded) = if size <= 64 {
        let steps = size.div_ceil(16).max(1);
        (steps - 1, steps * 16)
    } else {
        let power = (size - 1).ilog2() as usize;
        let base = 1_usize << power;
        let step = (size - 1 - base) / (base / 4);
        (4 + (power - 6) * 4 + step, base + (step + 1) * (base / 4))
    };
    let align = if rounded >= LINE_FROM { 64 } else { 16 };
    if index >= CLASSES || layout.align() > align {
        return None;
    }
    Some((index, Layout::from_size_align(rounded, align).ok()?))
}

impl Kept {
    fn pop(&mut self, index: usize, size: usize) -> *mut u8 {
        let p = self.free[index];
        if !p.is_null() {
            // SAFETY: a block in the list is free, at least 16 bytes long and 16-aligned, and its first word is the next's
            // address, written by `push`.
            self.free[index] = unsafe { p.cast::<*mut u8>().read() };
            self.bytes -= size;
        }
        p
    }

    fn push(&mut self, p: *mut u8, index: usize, size: usize) {
        // SAFETY: the caller frees this block: nobody else uses it, and it has room for a pointer (see `pop`).
        unsafe { p.cast::<*mut u8>().write(self.free[index]) };
        self.free[index] = p;
        self.bytes += size;
    }
}

/// Gives this thread's kept blocks back to the system; whether there were any.
fn release_kept() -> bool {
    let mut any = false;
    for index in 0..CLASSES {
        let size = if index < 4 {
            (index + 1) * 16
        } else {
            (1 << (6 + (index - 4) / 4)) / 4 * (5 + (index - 4) % 4)
        };
        let align = if size >= LINE_FROM { 64 } else { 16 };
        let Ok(layout) = Layout::from_size_align(size, align) else { continue };
        while let Some(p) = with_kept(|k, _| k.pop(index, size)).filter(|p| !p.is_null()) {
            any = true;
            // SAFETY: every block of this class was allocated with this layout (`class`) and is in no list any more.
            unsafe { System.dealloc(p, layout) };
        }
    }
    any
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX) // a Layout's size never exceeds isize::MAX
}

fn take(layout: Layout, zeroed: bool) -> *mut u8 {
    let (index, layout) = match class(layout) {
        Some((index, layout)) => (Some(index), layout),
        None => (None, layout),
    };
    let size = layout.size();
    let kept = with_kept(|k, block| {
        let p = index.map_or(null_mut(), |i| k.pop(i, size));
        if !p.is_null() {
            block.count(signed(size));
        }
        p
    });
    if let Some(p) = kept.filter(|p| !p.is_null()) {
        if zeroed {
            // SAFETY: the block is `size` bytes long and ours.
            unsafe { p.write_bytes(0, size) };
        }
        return p;
    }
    // SAFETY: the size is not zero: GlobalAlloc's callers promise that, and rounding only makes it larger.
    let ask = || unsafe { if zeroed { System.alloc_zeroed(layout) } else { System.alloc(layout) } };
    let mut p = ask();
    if p.is_null() && release_kept() {
        p = ask();
    }
    if p.is_null() {
        refused(size);
    } else {
        with_kept(|_, block| block.count(signed(size)));
    }
    p
}

/// # Safety
/// `p` was allocated by this allocator with `layout`.
unsafe fn give(p: *mut u8, layout: Layout) {
    let (index, layout) = match class(layout) {
        Some((index, layout)) => (Some(index), layout),
        None => (None, layout),
    };
    let size = layout.size();
    let keep = with_kept(|k, block| {
        block.count(-signed(size));
        let Some(index) = index else { return false };
        let keep = block.in_use() + k.bytes + size <= block.peak() / 4 * 5;
        if keep {
            k.push(p, index, size);
        }
        keep
    });
    if keep != Some(true) {
        // SAFETY: allocated by `take` with the same class' layout (or, without a class, with this very layout).
        unsafe { System.dealloc(p, layout) };
    }
}

// SAFETY: `take` returns null or a fresh block at least as large and aligned as asked for; a block is in exactly one place:
// in use, in one thread's list, or with the system. Nothing here unwinds or allocates.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout, false)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout, true)
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { give(p, layout) }
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        match (class(layout), class(new)) {
            (Some((a, _)), Some((b, _))) if a == b => p, // the block is as large as its class
            (None, None) => {
                // SAFETY: both sides were and will be passed on as they are; the caller's contract.
                let q = unsafe { System.realloc(p, layout, size) };
                if q.is_null() {
                    refused(size);
                } else {
                    with_kept(|_, block| block.count(signed(size) - signed(layout.size())));
                }
                q
            }
            _ => {
                let q = take(new, false);
                if !q.is_null() {
                    // SAFETY: both blocks are at least the smaller size long and do not overlap; `p` is the caller's to give.
                    unsafe {
                        q.copy_from_nonoverlapping(p, layout.size().min(size));
                        give(p, layout);
                    }
                }
                q
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_class_and_wastes_at_most_a_quarter() {
        let of = |size| class(Layout::from_size_align(size, 8).unwrap()).unwrap();
        for size in (1..5000).chain((12..30).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 1])) {
            let (index, block) = of(size);
            assert!(block.size() >= size && index < CLASSES);
            assert!(size <= 64 || block.size() <= size + size / 4 + 1, "{size} became {}", block.size());
            // The rounded size is in the same class, and the next byte in the next.
            assert_eq!(of(block.size()), (index, block));
            assert_eq!(of(block.size() + 1).0, index + 1);
        }
        assert!(class(Layout::from_size_align((1 << 30) + 1, 8).unwrap()).is_none());
        assert!(class(Layout::from_size_align(4096, 4096).unwrap()).is_none());
    }

    #[test]
    fn a_worker_finds_its_block_again_and_others_do_not_keep_any() {
        let block: &'static WorkerBlock = Box::leak(Box::default());
        std::thread::spawn(move || {
            this_thread_is_a_worker(block);
            let layout = Layout::from_size_align(100_000, 8).unwrap();
            let first = take(layout, false);
            assert!(block.in_use() >= 100_000);
            // SAFETY: allocated just above, 100,000 bytes long.
            unsafe {
                first.write_bytes(7, layout.size());
                give(first, layout);
            }
            assert_eq!(block.in_use(), 0);
            let again = take(layout, true);
            assert_eq!(again, first);
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(again, layout.size()) };
            assert!(bytes.iter().all(|&b| b == 0), "a block asked for zeroed is zeroed");
            // SAFETY: as above.
            unsafe { give(again, layout) };
            assert!(release_kept() && !release_kept());
        })
        .join()
        .unwrap();
        assert_eq!(with_kept(|_, _| ()), None);
    }

    #[test]
    fn contents_survive_growing_and_shrinking() {
        let a = CountingAllocator;
        let mut layout = Layout::from_size_align(10, 1).unwrap();
        // SAFETY: every pointer is used with the layout it has at that moment, within its size.
        unsafe {
            let mut p = a.alloc(layout);
            p.write_bytes(42, 10);
            for size in [16, 17, 1000, 2_000_000, 3, 3_000_000_000, 20, 10] {
                p = a.realloc(p, layout, size);
                assert!(!p.is_null());
                layout = Layout::from_size_align(size, 1).unwrap();
                assert!((0..size.min(3)).all(|i| *p.add(i) == 42), "at {size}");
            }
            a.dealloc(p, layout);
        }
    }
}
