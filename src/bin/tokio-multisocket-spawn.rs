//! How many tasks are polled for one datagram, with a task for each socket? One: the task is what tokio wakes.
//!
//! Run:             cargo run --bin tokio-multisocket-spawn
//! Second terminal: nc -u 127.0.0.1 PORT, with a port that it says it listens on
//! In the trace:    one epoll_wait and one poll line for one datagram.
//! Left out:        echo. Datagrams are only received.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::multisocket::{Counted, Counts, passing, sockets};
use echo_lab::{Attempt, Result};
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (sockets, counts) = sockets().await?;
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        tasks.spawn(Counted::new(index, &counts, receive(index, socket, counts.clone())));
    }
    tokio::select! {
        Some(ended) = tasks.join_next() => ended.attempt("finish a task").and_then(|()| counts.failure()),
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
