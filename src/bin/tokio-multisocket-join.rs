//! How many futures does join_all poll for one datagram? All of them: they share one waker, the task's, which does not
//! say who woke it. Beyond 30 futures join_all changes its way: each gets a waker of its own, and one is polled. What to
//! do about it: spawn tasks, or use FuturesUnordered, whatever the number.
//!
//! Run:             cargo run --bin tokio-multisocket-join
//! Second terminal: nc -u 127.0.0.1 PORT, with a port that it says it listens on
//! In the trace:    one epoll_wait and ten poll lines for one datagram; with `-- --sockets 31`, one poll line.
//! Left out:        echo. Datagrams are only received.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::Result;
use echo_lab::multisocket::{Counted, Counts, passing, sockets};
use futures::future::join_all;
use std::sync::Arc;
use tokio::net::UdpSocket;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (sockets, counts) = sockets().await?;
    let futures = sockets.into_iter().enumerate();
    let futures = futures.map(|(index, socket)| Counted::new(index, &counts, receive(index, socket, counts.clone())));
    tokio::select! {
        biased;
        _ = join_all(futures) => counts.failure(),
        result = counts.done() => result,
    }
}

async fn receive(index: usize, socket: UdpSocket, counts: Arc<Counts>) -> Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, _)) => counts.received(index, len)?,
            Err(error) => passing(error)?,
        }
    }
}
