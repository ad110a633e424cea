//! Side by side: what does each approach cost on this machine? Starts echo servers as processes, loads them in turn, and
//! compares each with a reference measured directly before.
//!
//! Run:             scripts/compare --quick
//! Second terminal: nothing
//! In the trace:    sendmmsg and recvmmsg: the client must not be the bottleneck.
//! Left out:        see METHODOLOGY.md.
//! Oldest system:   Linux 3.2, which the standard library needs; sendmmsg is older.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for its process clocks and sendmmsg(2)")
}

#[cfg(target_os = "linux")]
mod args;
#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod condition;
#[cfg(target_os = "linux")]
mod export;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod stats;
#[cfg(target_os = "linux")]
mod subject;
#[cfg(target_os = "linux")]
mod table;
#[cfg(target_os = "linux")]
mod wire;

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<std::process::ExitCode> {
    run::main()
}
