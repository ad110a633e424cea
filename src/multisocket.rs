//! What the three `tokio-multisocket` probes share: their flags, their sockets, and a future that counts its polls.

use crate::report::{listening, log_line, print_line};
use crate::{Attempt, Error, Result};
use clap::Parser;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// Counts how often each of many futures is polled, one for each socket on 127.0.0.1
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Sockets, and futures
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub sockets: u16,
    /// The first socket's port, the next has the next one; 0 lets the kernel pick free ones
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub start_port: u16,
    /// End after N datagrams
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
}

/// Polls by future, and what ends the probe: the last datagram, or an error.
pub struct Counts {
    polls: Vec<AtomicU64>,
    to_come: AtomicU64,
    failure: Mutex<Option<Error>>,
    done: Notify,
}

/// The sockets that the flags ask for, each announced, and the counts for their futures. A range of ports that does
/// not exist ends the process with status 2.
pub async fn sockets() -> Result<(Vec<UdpSocket>, Arc<Counts>)> {
    let args = Args::parse();
    if args.start_port.checked_add(args.sockets - 1).is_none() {
        log_line(format_args!("error: {} sockets from port {} need ports beyond 65535", args.sockets, args.start_port));
        std::process::exit(2);
    }
    let mut sockets = Vec::new();
    for index in 0..args.sockets {
        let port = if args.start_port == 0 { 0 } else { args.start_port + index };
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = UdpSocket::bind(at).await.attempt(format_args!("bind UDP {at}"))?;
        listening(socket.local_addr().attempt("read the bound address")?)?;
        sockets.push(socket);
    }
    let polls = sockets.iter().map(|_| AtomicU64::new(0)).collect();
    Ok((
        sockets,
        Arc::new(Counts { polls, to_come: args.count.into(), failure: Mutex::new(None), done: Notify::new() }),
    ))
}

impl Counts {
    /// A datagram came to the future `index`.
    pub fn received(&self, index: usize, bytes: usize) -> Result<()> {
        print_line(format_args!("future {index} received {bytes} bytes"))?;
        if self.to_come.fetch_sub(1, Relaxed) == 1 {
            self.done.notify_one();
        }
        Ok(())
    }

    /// Says `waiting` once every future has been polled: each later poll has a datagram as its cause. Ends with the
    /// last datagram, or with the error of a future.
    pub async fn done(&self) -> Result<()> {
        while self.polls.iter().any(|polls| polls.load(Relaxed) == 0) {
            tokio::task::yield_now().await;
        }
        print_line("waiting")?;
        self.done.notified().await;
        self.failure()?;
        self.polls
            .iter()
            .enumerate()
            .try_for_each(|(index, polls)| print_line(format_args!("future {index}: {} polls", polls.load(Relaxed))))
    }

    /// The error that ended a future, if one did: nothing else ends one.
    pub fn failure(&self) -> Result<()> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn fail(&self, error: Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.done.notify_one();
    }
}

/// Says each time that it is polled. An error of its future goes to the counts, since not every way of holding futures
/// hands it on: join_all keeps it until all have ended.
pub struct Counted<F> {
    index: usize,
    counts: Arc<Counts>,
    future: Pin<Box<F>>,
}

impl<F> Counted<F> {
    /// Counts the polls of `future` under `index`.
    pub fn new(index: usize, counts: &Arc<Counts>, future: F) -> Self {
        Self { index, counts: counts.clone(), future: Box::pin(future) }
    }
}

impl<F: Future<Output = Result<()>>> Future for Counted<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.counts.polls[self.index].fetch_add(1, Relaxed);
        let result = match print_line(format_args!("poll {}", self.index)) {
            Ok(()) => std::task::ready!(self.future.as_mut().poll(context)),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.counts.fail(error);
        }
        Poll::Ready(())
    }
}

/// What a future of a probe is to do with an error of its socket: nothing, if it concerns one peer.
pub fn passing(error: std::io::Error) -> Result<()> {
    match crate::policy::on_recv(&error) {
        crate::policy::Verdict::Fatal => Err(Error::new(format!("cannot receive: {error}"))),
        _ => Ok(()),
    }
}
