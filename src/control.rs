//! Control data of recvmsg(2) and sendmsg(2): what goes with a datagram besides its bytes and its peer, see cmsg(3). The
//! calls are the example's.

use crate::{Attempt, Result};
use libc::{c_int, cmsghdr, in_addr, in_pktinfo, in6_addr, in6_pktinfo, msghdr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// On a wildcard address the kernel is asked to say of each datagram which address it was sent to, so that the answer can
/// come from there: IP_PKTINFO (ip(7)), IPV6_RECVPKTINFO (ipv6(7)). Otherwise the route to the peer picks the source, and a
/// client that is connected to the address it asked never sees the answer.
pub fn ask_for_destination(socket: &UdpSocket, local: SocketAddr) -> Result<()> {
    if !local.ip().is_unspecified() {
        return Ok(());
    }
    // A socket of IPv6 takes IPv4 as well, and is told of it in both ways.
    let v4 = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    let v6 = local.is_ipv6().then_some((libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO));
    for (level, option) in [v4].into_iter().chain(v6) {
        let on: c_int = 1;
        let (at, len) = ((&raw const on).cast(), size_of_val(&on) as u32);
        // SAFETY: the option is read from `on`, whose size is given.
        let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len) };
        let result = if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        result.attempt("ask for the address that datagrams are sent to")?;
    }
    Ok(())
}

/// The messages of one receive, or of one send. Nothing of it is allocated.
// Aligned as `cmsghdr` is.
#[repr(C, align(8))]
pub struct Control {
    bytes: [u8; ROOM],
    len: usize,
}

/// Enough for the size of a segment, and for an address in both its forms.
const ROOM: usize = space::<c_int>() + space::<in_pktinfo>() + space::<in6_pktinfo>();

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }
}

impl Control {
    /// Forgets all messages.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Where a receive puts its messages. What it leaves is no message.
    pub fn room(&mut self) -> &mut [u8] {
        (self.bytes, self.len) = ([0; ROOM], ROOM);
        &mut self.bytes
    }

    /// What a send takes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Lets the kernel cut what is sent into datagrams of `size` bytes (UDP_SEGMENT, udp(7)).
    pub fn push_segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }

    /// The size of each datagram but the last, if a receive took several (UDP_GRO, udp(7)).
    pub fn segment(&self) -> Option<usize> {
        self.find::<c_int>(libc::SOL_UDP, libc::UDP_GRO).and_then(|size| size.try_into().ok())
    }

    /// The address that a datagram was sent to, if it was asked for. For one that was sent to many: of IPv4 this machine's own
    /// address there, of IPv6 none.
    pub fn destination(&self) -> Option<IpAddr> {
        if let Some(info) = self.find::<in_pktinfo>(libc::IPPROTO_IP, libc::IP_PKTINFO) {
            return Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into());
        }
        let info = self.find::<in6_pktinfo>(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
        let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
        (!ip.is_multicast()).then_some(ip.into())
    }

    /// Sends from `ip`, by whatever interface the route says.
    pub fn push_source(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                let (ipi_spec_dst, none) = (in_addr { s_addr: u32::from_ne_bytes(ip.octets()) }, in_addr { s_addr: 0 });
                let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: none };
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(ip) => {
                let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// `T` is what the kernel puts into such a message: plain integers.
    fn find<T: Copy>(&self, level: c_int, kind: c_int) -> Option<T> {
        // SAFETY: all zeroes is a valid msghdr.
        let mut header: msghdr = unsafe { std::mem::zeroed() };
        (header.msg_control, header.msg_controllen) = (self.bytes.as_ptr().cast_mut().cast(), self.len as _);
        // SAFETY: the macros stay within `len` bytes, which are aligned; a message is as long as its header says. What the
        // kernel has left is all zeroes, a message that is too short to be one: the macros end there.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&header);
            while let Some(message) = at.as_ref() {
                let fits = message.cmsg_len as u64 >= libc::CMSG_LEN(size_of::<T>() as u32).into();
                if (message.cmsg_level, message.cmsg_type) == (level, kind) && fits {
                    return Some(libc::CMSG_DATA(at).cast::<T>().read_unaligned());
                }
                at = libc::CMSG_NXTHDR(&header, at);
            }
        }
        None
    }

    fn push<T: Copy>(&mut self, level: c_int, kind: c_int, value: T) {
        let end = self.len + space::<T>();
        let room = &mut self.bytes[self.len..end];
        room.fill(0);
        let at = room.as_mut_ptr().cast::<cmsghdr>();
        // SAFETY: the room is for one header and one value, and aligned, since each message ends where the next may begin.
        unsafe {
            (*at).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
            ((*at).cmsg_level, (*at).cmsg_type) = (level, kind);
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        }
        self.len = end;
    }
}

/// What a message with a `T` takes.
const fn space<T>() -> usize {
    // SAFETY: no memory is involved.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_pushed_and_nothing_else() {
        let mut control = Control::default();
        assert_eq!((control.segment(), control.destination(), control.bytes()), (None, None, &[][..]));
        for ip in ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()) {
            control.clear();
            control.push_source(ip);
            control.push(libc::SOL_UDP, libc::UDP_GRO, 1400 as c_int);
            assert_eq!((control.segment(), control.destination()), (Some(1400), Some(ip)));
        }
        control.clear();
        control.push_source("ff02::1".parse().unwrap());
        control.push_segment(1400);
        assert_eq!((control.segment(), control.destination()), (None, None));
        // One that is too short for what is looked for.
        assert_eq!(control.find::<u64>(libc::SOL_UDP, libc::UDP_SEGMENT), None);
        control.room();
        assert_eq!((control.segment(), control.destination()), (None, None));
    }
}
