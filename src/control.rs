//! Control data of sendmsg(2): what goes with a datagram besides its bytes and its peer, see cmsg(3). The calls are the
//! example's.

use libc::{c_int, cmsghdr};

/// The messages of one send. Nothing of it is allocated.
// Aligned as `cmsghdr` is.
#[repr(C, align(8))]
pub struct Control {
    bytes: [u8; ROOM],
    len: usize,
}

/// Enough for the size of a segment.
const ROOM: usize = space::<u16>();

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

    /// What a send takes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Lets the kernel cut what is sent into datagrams of `size` bytes (UDP_SEGMENT, udp(7)).
    pub fn push_segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
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
