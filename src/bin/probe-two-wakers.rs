//! Who is woken when two tasks wait for the same socket? With `poll_recv_ready`, and all other `poll_` functions of tokio's
//! sockets, the one that asked last: a socket keeps one waker for each direction, and the other task waits for ever.
//! With `readable`, both: each such future has a place of its own in a list. What to do about it: `poll_` functions for one
//! task only; share a socket between tasks with its async functions.
//!
//! Run:             cargo run --bin probe-two-wakers
//! Second terminal: nothing: it sends to itself
//! In the trace:    one epoll_wait reports the datagram; who is told is not the system's business.
//! Left out:        a datagram has one receiver: of two tasks that are woken, one finds nothing and waits again.
//! Oldest system:   whatever tokio supports.

use echo_lab::{Attempt, Result, report::print_line};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::UdpSocket;
use tokio::task::{JoinSet, LocalSet};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    LocalSet::new().run_until(probe()).await
}

async fn probe() -> Result<()> {
    let polled = |socket: Rc<UdpSocket>| async move { poll_fn(|context| socket.poll_recv_ready(context)).await };
    woken("poll_recv_ready", polled).await?;
    woken("readable", |socket: Rc<UdpSocket>| async move { socket.readable().await }).await
}

/// Lets two tasks wait in the same way, sends one datagram, and prints whom it woke.
async fn woken<F>(name: &str, wait: impl Fn(Rc<UdpSocket>) -> F) -> Result<()>
where
    F: Future<Output = std::io::Result<()>> + 'static,
{
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.attempt("bind a socket")?;
    let socket = Rc::new(socket);
    let mut tasks = JoinSet::new();
    for number in 1..=2 {
        let wait = wait(socket.clone());
        tasks.spawn_local(async move { wait.await.map(|()| number) });
    }
    // Both tasks run until they wait, the first one first.
    tokio::task::yield_now().await;
    let own = socket.local_addr().attempt("read the bound address")?;
    std::net::UdpSocket::bind("127.0.0.1:0").and_then(|sender| sender.send_to(b"x", own)).attempt("send")?;
    let mut woken = Vec::new();
    // Each time, the runtime looks for events and runs whom they woke.
    for _ in 0..3 {
        tokio::task::yield_now().await;
        while let Some(ended) = tasks.try_join_next() {
            let number: u32 = ended.attempt("finish a task")?.attempt("wait for the socket")?;
            woken.push(format!("task {number}"));
        }
    }
    woken.sort();
    print_line(format_args!("{name}: one datagram woke {}", woken.join(" and ")))
}
