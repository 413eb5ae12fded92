//! Caught panics as text: message and location.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// The location of this thread's last panic.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls `f` and converts a panic to an error with its message and location.
///
/// Only the panic hook receives the location. The first call installs a hook that also calls the
/// program's previous hook.
///
/// # Errors
/// Returns the text of a panic, such as `index out of bounds (src/main.rs:12:9)`.
pub fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let program = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                let location = info.location().map(ToString::to_string);
                LOCATION.with(|l| *l.borrow_mut() = location);
                program(info);
            }));
        });
    }
    LOCATION.take();
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let message = message(&*payload);
        // A panic resumed from another thread has left its location in that thread.
        LOCATION
            .take()
            .map_or_else(|| message.to_owned(), |location| format!("{message} ({location})"))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_tells_its_message_and_location() {
        let check = |f: fn(), expect: &str| {
            let text = caught(f).unwrap_err();
            assert!(text.starts_with(expect), "{text}");
            text
        };
        let [literal, formatted] =
            [check(|| panic!("literal"), "literal ("), check(|| panic!("of {}", 1 + 1), "of 2 (")];
        assert!(
            literal.contains("panics.rs:") && formatted.contains("panics.rs:"),
            "{literal}, {formatted}"
        );
        // A non-string payload has a location. A panic resumed from another thread has none, and
        // does not take that of an earlier panic.
        assert!(check(|| panic::panic_any(7), "no message").contains("panics.rs:"));
        assert_eq!(check(|| panic::resume_unwind(Box::new("elsewhere")), "elsewhere"), "elsewhere");
        assert_eq!(caught(|| 3), Ok(3));
    }
}
