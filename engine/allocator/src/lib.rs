//! The allocator of programs that run tasks: mimalloc, which is told to take memory only as it is
//! used.
//!
//! By itself it asks for its first gigabyte at once and for huge pages in it. Then each thread that
//! allocates a little has some 2 MB of its own: 8 MB of an idle process, 30 MB of one that reads
//! over a network, which no projection knows.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;
//! ```
//!
//! What is freed it keeps for a while by itself, in case that it is asked for again. Where much
//! memory is taken and freed once, [`Frugal`] has it given back to the system at once.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use mimalloc::MiMalloc;

/// To be a program's `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

/// `mi_option_arena_eager_commit`, since version 2 of the library.
const ARENA_EAGER_COMMIT: c_int = 4;

/// `mi_option_purge_delay`, since version 2; milliseconds.
const PURGE_DELAY: c_int = 15;

#[allow(unsafe_code)]
unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_collect(force: bool);
}

static TOLD: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code)]
fn tell() {
    // SAFETY: sets one number in a table; it allocates nothing, and nothing is allocated yet.
    unsafe { mi_option_set(ARENA_EAGER_COMMIT, 0) };
    TOLD.store(true, Ordering::Relaxed);
}

/// While one is there, what is freed goes back to the system at once, in all threads; what was kept
/// before goes back as it is made. Costs a system call for each piece that goes.
#[derive(Debug)]
pub struct Frugal(());

/// How many there are, and the delay without any.
static FRUGAL: Mutex<(usize, c_long)> = Mutex::new((0, 0));

impl Frugal {
    /// Begins. Without effect where [`Allocator`] is not the program's.
    #[allow(unsafe_code, clippy::new_without_default)]
    pub fn new() -> Frugal {
        let mut frugal = FRUGAL.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the first two read and set one number in a table, the third gives back what
        // nobody has.
        unsafe {
            if frugal.0 == 0 {
                frugal.1 = mi_option_get(PURGE_DELAY);
                mi_option_set(PURGE_DELAY, 0);
            }
            mi_collect(true);
        }
        frugal.0 += 1;
        Frugal(())
    }
}

impl Drop for Frugal {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        let mut frugal = FRUGAL.lock().unwrap_or_else(PoisonError::into_inner);
        frugal.0 -= 1;
        if frugal.0 == 0 {
            // SAFETY: as above.
            unsafe { mi_option_set(PURGE_DELAY, frugal.1) };
        }
    }
}

// SAFETY: mimalloc does all of it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !TOLD.load(Ordering::Relaxed) {
            tell();
        }
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !TOLD.load(Ordering::Relaxed) {
            tell();
        }
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { MiMalloc.realloc(at, layout, size) }
    }
}
