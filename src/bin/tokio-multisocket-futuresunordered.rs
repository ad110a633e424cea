//! How many futures does FuturesUnordered poll for one datagram? One: it gives each future a waker of its own, and polls
//! those that were woken. So one task can hold many sockets.
//!
//! Run:             cargo run --bin tokio-multisocket-futuresunordered
//! Second terminal: nc -u 127.0.0.1 PORT, with a port that it says it listens on
//! In the trace:    one epoll_wait and one poll line for one datagram.
//! Left out:        echo. Datagrams are only received.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::Result;
use echo_lab::multisocket::{Counted, Counts, passing, sockets};
use futures::stream::{FuturesUnordered, StreamExt};
use std::sync::Arc;
use tokio::net::UdpSocket;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (sockets, counts) = sockets().await?;
    let futures = sockets.into_iter().enumerate();
    let futures = futures.map(|(index, socket)| Counted::new(index, &counts, receive(index, socket, counts.clone())));
    let mut futures = futures.collect::<FuturesUnordered<_>>();
    tokio::select! {
        biased;
        _ = futures.next() => counts.failure(),
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
