//! Servers that are bound to all addresses of the machine: which one answers.

use crate::rings::{namespaced, shell};
use crate::server::{PATIENCE, Server};
use crate::{Check, Needs, check};
use echo_lab::catalog::{Answers, Row};
use std::net::{IpAddr, SocketAddr, UdpSocket};

pub fn checks(row: &Row) -> Vec<Check> {
    let name = match row.answers {
        Answers::FromAsked => "answers_from_the_address_that_was_asked",
        Answers::FromRoute => "answers_from_the_address_of_the_route",
    };
    vec![check(name, Needs::Namespace, |row| namespaced(|| source(row)))]
}

/// One client asks two addresses in turn, so that a batch has both.
fn source(row: &Row) {
    shell("ip addr add fd77::2/128 dev lo nodad; ip addr add fd77::3/128 dev lo nodad");
    for (bind, client, asked) in [
        ("0.0.0.0:0", "127.0.0.1", ["127.0.0.2", "127.0.0.3"]),
        ("[::]:0", "127.0.0.1", ["127.0.0.2", "127.0.0.3"]),
        ("[::]:0", "::1", ["fd77::2", "fd77::3"]),
    ] {
        let server = Server::start(row, &["--bind", bind]);
        let ip = |ip: &str| ip.parse::<IpAddr>().unwrap();
        let socket = UdpSocket::bind((ip(client), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let at = |number: u8| SocketAddr::new(ip(asked[usize::from(number) % 2]), server.addr.port());
        server.signal(libc::SIGSTOP);
        (0..20).for_each(|number| assert_eq!(socket.send_to(&[number], at(number)).unwrap(), 1));
        server.signal(libc::SIGCONT);
        for number in 0..20 {
            let mut got = [0];
            let (_, from) = socket.recv_from(&mut got).unwrap();
            let expected = match row.answers {
                Answers::FromAsked => at(number).ip(),
                // That of the peer itself: both are on this machine.
                Answers::FromRoute => ip(client),
            };
            assert_eq!((got[0], from.ip()), (number, expected), "on {bind}");
        }
        server.stop();
    }
}
