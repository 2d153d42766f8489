//! The end that somebody asks for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Set by Ctrl-C; the comparison then ends in order. A second Ctrl-C ends the process at once, and
/// the kernel everything that it has started.
///
/// # Errors
///
/// Where there is no thread for it.
pub fn interrupted() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let wait = move || {
        let signal = || runtime.block_on(tokio::signal::ctrl_c()).is_ok();
        if signal() {
            set.store(true, Ordering::Relaxed);
            if signal() {
                std::process::exit(1);
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(flag)
}
