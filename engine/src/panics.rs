//! Panics as text: message and location of a panic that was caught.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Location of this thread's last panic.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls `f`; a panic becomes an error with its message and location.
///
/// The location is known to the panic hook alone. The first call adds to the program's hook, which is called as before.
///
/// # Errors
/// The text of a panic, such as `index out of bounds (src/main.rs:12:9)`.
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
        // A panic that comes from another thread has left its location there.
        LOCATION.take().map_or_else(|| message.to_owned(), |location| format!("{message} ({location})"))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
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
        let [literal, formatted] = [check(|| panic!("literal"), "literal ("), check(|| panic!("of {}", 1 + 1), "of 2 (")];
        assert!(literal.contains("panics.rs:") && formatted.contains("panics.rs:"), "{literal}, {formatted}");
        // Payloads that are no text, and panics of other threads, have no location of their own, nor that of an earlier one.
        assert!(check(|| panic::panic_any(7), "no message").contains("panics.rs:"));
        assert_eq!(check(|| panic::resume_unwind(Box::new("elsewhere")), "elsewhere"), "elsewhere");
        assert_eq!(caught(|| 3), Ok(3));
    }
}
