//! How much may one tokio task do before the others get their turn? Each task has a budget of 128 operations; when it is
//! used up, `recv_from` says that it would block although it would not, so that the task gives way. `try_recv_from` spends no
//! budget, nor does a task that is told to be unconstrained: a busy socket then keeps its task running. What to do about it:
//! with `try_` calls, limit the turn yourself (echo-tokio), or spend the budget with `consume_budget`.
//!
//! Run:             cargo run --bin probe-coop
//! Second terminal: nothing: it sends 200 datagrams to itself
//! In the trace:    as many times recvfrom in each case: the budget costs no call.
//! Left out:        the other task, which would run between two polls.
//! Oldest system:   whatever tokio supports.

use clap::Parser;
use echo_lab::{Attempt, Result, report::print_line};
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use tokio::net::UdpSocket;
use tokio::task::unconstrained;

/// How much may one tokio task do before the others get their turn?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Datagrams that wait when the task begins
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=250))]
    burst: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let count = Args::parse().burst;
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.attempt("bind a socket")?;
    let received = Cell::new(0);

    burst(&socket, count).await?;
    let awaited = async {
        while received.get() < count {
            socket.recv_from(&mut [0; 8]).await.attempt("receive")?;
            received.set(received.get() + 1);
        }
        Ok(())
    };
    say("recv_from", &received, awaited).await?;

    burst(&socket, count).await?;
    let tried = async {
        while received.get() < count {
            socket.try_recv_from(&mut [0; 8]).attempt("receive")?;
            received.set(received.get() + 1);
        }
        Ok(())
    };
    say("try_recv_from", &received, tried).await?;

    burst(&socket, count).await?;
    let free = unconstrained(async {
        while received.get() < count {
            socket.recv_from(&mut [0; 8]).await.attempt("receive")?;
            received.set(received.get() + 1);
        }
        Ok(())
    });
    say("recv_from, unconstrained", &received, free).await
}

/// Fills the socket, and starts with a fresh budget and a socket that tokio knows to be readable.
async fn burst(socket: &UdpSocket, count: u16) -> Result<()> {
    let own = socket.local_addr().attempt("read the bound address")?;
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").attempt("bind a sender")?;
    (0..count).try_for_each(|_| sender.send_to(b"x", own).map(drop)).attempt("send")?;
    socket.readable().await.attempt("wait until the socket is readable")?;
    tokio::task::yield_now().await;
    Ok(())
}

/// Runs `work` to its end and prints how many datagrams each of its polls received.
async fn say(name: &str, received: &Cell<u16>, work: impl Future<Output = Result<()>>) -> Result<()> {
    received.set(0);
    let (mut work, mut polls, mut before) = (pin!(work), Vec::new(), 0);
    let outcome = poll_fn(|context| {
        let poll = work.as_mut().poll(context);
        polls.push((received.get() - before).to_string());
        before = received.get();
        poll
    });
    outcome.await?;
    print_line(format_args!("{name}: datagrams for each poll: {}", polls.join(", ")))
}
