//! The allocator of programs that run tasks: mimalloc, which is told to take memory only as it is used.
//!
//! By itself it asks for its first gigabyte at once and for huge pages in it. Then each thread that allocates a little has some
//! 2 MB of its own: 8 MB of an idle process, 30 MB of one that reads over a network, which no projection knows.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;
//! ```

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicBool, Ordering};

use mimalloc::MiMalloc;

/// To be a program's `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

/// `mi_option_arena_eager_commit`, since version 2 of the library.
const ARENA_EAGER_COMMIT: c_int = 4;

static TOLD: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code)]
fn tell() {
    unsafe extern "C" {
        fn mi_option_set(option: c_int, value: c_long);
    }
    // SAFETY: sets one number in a table; it allocates nothing, and nothing is allocated yet.
    unsafe { mi_option_set(ARENA_EAGER_COMMIT, 0) };
    TOLD.store(true, Ordering::Relaxed);
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
