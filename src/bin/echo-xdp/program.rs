//! The program for the driver, as instructions of the kernel's virtual machine (RFC 9669): there is nothing to compile, and
//! what depends on the flags (address family, address, port, limits) is a constant in it.

use crate::assembler::*;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

/// Places in the map of counters, which are `u64`.
pub const ECHOED: usize = 0;
pub const SOURCE_PORT_ZERO: usize = 1;
pub const OWN_PORT: usize = 2;
pub const TOO_BIG: usize = 3;

/// What a program says about a frame (linux/bpf.h).
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

const ETHERNET: i16 = 14;
/// More does not fit into the one page of a frame; the kernel passes such datagrams to the socket.
const PAGE: i32 = 4096;

/// Passes everything on.
pub fn pass() -> Vec<Instruction> {
    let mut p = Assembler::default();
    p.end(XDP_PASS);
    p.finish()
}

/// Sends back what is for `local`, as [`echo_lab::policy`] has it, unless `count` were echoed; passes on everything else.
pub fn echo(local: SocketAddr, max_size: u16, count: u64, counters: RawFd) -> Vec<Instruction> {
    let v4 = local.is_ipv4();
    let own: Vec<i32> = match local.ip() {
        IpAddr::V4(ip) => vec![i32::from_ne_bytes(ip.octets())],
        IpAddr::V6(ip) => ip.octets().chunks(4).map(|it| i32::from_ne_bytes([it[0], it[1], it[2], it[3]])).collect(),
    };
    let words = |from: i16| (0..own.len() as i16).map(move |word| from + 4 * word);
    let source = ETHERNET + if v4 { 12 } else { 8 };
    let target = source + 4 * own.len() as i16;
    let udp = target + 4 * own.len() as i16;
    let (source_port, target_port, length, checksum, payload) = (udp, udp + 2, udp + 4, udp + 6, udp + 8);
    let port = network(local.port());
    let mut p = Assembler::default();

    // The kernel lets nothing be read that has not been compared with the end before.
    p.load(U32, FRAME, CONTEXT, 0);
    p.load(U32, END, CONTEXT, 4);
    p.add(A, FRAME, payload.into());
    p.jump_registers(GREATER, A, END, "pass");

    // For this machine, in one piece, UDP.
    p.load(U8, A, FRAME, 0);
    p.jump(ANY_BIT, A, 1, "pass"); // To many stations.
    p.load(U16, A, FRAME, 12);
    p.jump(DIFFERENT, A, network(if v4 { 0x0800 } else { 0x86dd }), "pass");
    if v4 {
        p.load(U8, A, FRAME, ETHERNET);
        p.jump(DIFFERENT, A, 0x45, "pass"); // With options.
        p.load(U16, A, FRAME, ETHERNET + 6);
        p.jump(ANY_BIT, A, network(0x3fff), "pass"); // A fragment.
    }
    p.load(U8, A, FRAME, ETHERNET + if v4 { 9 } else { 6 });
    p.jump(DIFFERENT, A, libc::IPPROTO_UDP, "pass");
    for (at, word) in words(target).zip(&own) {
        p.load(U32, A, FRAME, at);
        p.jump(DIFFERENT, A, *word, "pass");
    }
    p.load(U16, A, FRAME, target_port);
    p.jump(DIFFERENT, A, port, "pass");

    // Of one length by both headers, and all of it is there.
    p.load(U16, LENGTH, FRAME, length);
    p.machine(LENGTH);
    p.load(U16, A, FRAME, ETHERNET + if v4 { 2 } else { 4 });
    p.machine(A);
    p.alu(SUB, A, if v4 { 20 } else { 0 });
    p.jump_registers(DIFFERENT, A, LENGTH, "pass");
    p.jump(LESS, LENGTH, 8, "pass");
    p.alu(SUB, LENGTH, 8);
    p.jump(GREATER, LENGTH, PAGE, "pass");
    p.add(A, FRAME, payload.into());
    p.alu_registers(ADD, A, LENGTH);
    p.jump_registers(GREATER, A, END, "pass");

    // Who gets no answer.
    p.counters(counters);
    p.load(U16, A, FRAME, source_port);
    p.jump(EQUAL, A, 0, "source port zero");
    p.jump(EQUAL, A, port, "own port");
    // Nobody, loopback, a group: the kernel drops what comes from such an address, when it is passed on.
    p.load(U8, A, FRAME, source);
    p.jump(EQUAL, A, 0, "pass");
    p.jump(EQUAL, A, 127, "pass");
    p.jump(AT_LEAST, A, if v4 { 224 } else { 255 }, "pass");
    p.jump(GREATER, LENGTH, max_size.into(), "too big");

    // A sender on this machine, as on a veth pair, leaves the sum of the addresses, protocol and length where the checksum
    // is to be (CHECKSUM_PARTIAL): the network card was to add the rest, and there is none. Any other checksum stays
    // right, since a sum does not change when its parts change places.
    p.alu(MOVE, SUM, network(libc::IPPROTO_UDP as u16));
    p.load(U16, A, FRAME, length);
    p.alu_registers(ADD, SUM, A);
    for at in words(source).chain(words(target)) {
        p.load(U32, A, FRAME, at);
        p.alu_registers(ADD, SUM, A);
    }
    p.alu_registers(MOVE, C, SUM);
    p.fold(C, A);
    p.load(U16, A, FRAME, checksum);
    p.jump_registers(EQUAL, A, C, "partial");
    p.alu_registers(MOVE, SUM, A);
    p.jump(ALWAYS, 0, 0, "count");
    p.label("partial");
    p.load(U32, A, FRAME, source_port); // And the target port.
    p.alu_registers(ADD, SUM, A);
    p.load(U16, A, FRAME, length);
    p.alu_registers(ADD, SUM, A);
    p.add(B, FRAME, payload.into());
    p.label("more");
    for (size, bytes, next) in [(U32, 4, "two"), (U16, 2, "one"), (U8, 1, "end of sum")] {
        p.jump(LESS, LENGTH, bytes, next);
        p.add(C, B, bytes);
        p.jump_registers(GREATER, C, END, "pass");
        p.load(size, A, B, 0);
        if size == U8 && cfg!(target_endian = "big") {
            p.alu(0x60, A, 8); // Shift left.
        }
        p.alu_registers(ADD, SUM, A);
        p.alu_registers(MOVE, B, C);
        p.alu(SUB, LENGTH, bytes);
        if size == U32 {
            p.jump(ALWAYS, 0, 0, "more");
        }
        p.label(next);
    }
    p.fold(SUM, A);
    p.alu(XOR, SUM, 0xffff);
    p.jump(DIFFERENT, SUM, 0, "count");
    p.alu(MOVE, SUM, 0xffff); // 0 stands for no checksum.

    p.label("count");
    p.increment(C, ECHOED);
    p.wide(D, count, 0);
    p.jump_registers(AT_LEAST, C, D, "pass");

    p.store(U16, FRAME, checksum, SUM);
    p.swap(U32, 0, 6);
    p.swap(U16, 4, 10);
    for (one, other) in words(source).zip(words(target)) {
        p.swap(U32, one, other);
    }
    p.swap(U16, source_port, target_port);
    p.end(XDP_TX);

    for (label, counter) in [("source port zero", SOURCE_PORT_ZERO), ("own port", OWN_PORT), ("too big", TOO_BIG)] {
        p.label(label);
        p.increment(C, counter);
        p.end(XDP_DROP);
    }
    p.label("pass");
    p.end(XDP_PASS);
    p.finish()
}

/// As it lies in a frame.
fn network(value: u16) -> i32 {
    value.to_be().into()
}

#[cfg(test)]
mod tests {
    /// Linux 6.12 and older load the program only so; this kernel may load it without.
    #[test]
    fn whatever_changes_its_byte_order_is_cut_to_16_bits() {
        for local in ["192.0.2.1:7", "[2001:db8::1]:7"] {
            let program = super::echo(local.parse().unwrap(), 1500, 1, 0);
            let swapped = program.iter().enumerate().filter(|(_, it)| it.code == 0xdc);
            let cut = swapped.map(|(at, it)| {
                let next = &program[at + 1];
                (next.code, next.registers & 0x0f, next.immediate) == (0x57, it.registers & 0x0f, 0xffff)
            });
            assert_eq!(cut.collect::<Vec<_>>(), [true, true], "{local}");
        }
    }
}
