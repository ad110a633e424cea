//! Instructions of the kernel's virtual machine, by name (RFC 9669).

use std::os::fd::RawFd;

/// One instruction, as bpf(2) takes it.
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

// Registers. The program calls nothing, so all keep their values.
pub const SUM: u8 = 0; // Also what the program returns.
pub const CONTEXT: u8 = 1; // At the start; then scratch, as A to D.
pub const A: u8 = 1;
pub const B: u8 = 2;
pub const C: u8 = 3;
pub const D: u8 = 4;
pub const FRAME: u8 = 6;
pub const END: u8 = 7;
pub const LENGTH: u8 = 8; // Of the datagram, without its header.
pub const COUNTERS: u8 = 9;

// Sizes of what is loaded or stored.
pub const U32: u8 = 0x00;
pub const U16: u8 = 0x08;
pub const U8: u8 = 0x10;

pub const ADD: u8 = 0x00;
pub const SUB: u8 = 0x10;
pub const AND: u8 = 0x50;
pub const SHIFT_RIGHT: u8 = 0x70;
pub const XOR: u8 = 0xa0;
pub const MOVE: u8 = 0xb0;

pub const ALWAYS: u8 = 0x00;
pub const EQUAL: u8 = 0x10;
pub const GREATER: u8 = 0x20;
pub const AT_LEAST: u8 = 0x30;
pub const ANY_BIT: u8 = 0x40;
pub const DIFFERENT: u8 = 0x50;
pub const LESS: u8 = 0xa0;

/// Instructions, and the jumps whose distance is not known yet.
#[derive(Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
        self.code.push(Instruction { code, registers, offset, immediate });
    }

    /// `to` = what is at `base` + `offset`.
    pub fn load(&mut self, size: u8, to: u8, base: u8, offset: i16) {
        self.push(0x61 | size, to, base, offset, 0);
    }

    pub fn store(&mut self, size: u8, base: u8, offset: i16, from: u8) {
        self.push(0x63 | size, base, from, offset, 0);
    }

    /// Exchanges two places of the frame.
    pub fn swap(&mut self, size: u8, one: i16, other: i16) {
        self.load(size, A, FRAME, one);
        self.load(size, B, FRAME, other);
        self.store(size, FRAME, one, B);
        self.store(size, FRAME, other, A);
    }

    pub fn alu(&mut self, operation: u8, to: u8, immediate: i32) {
        self.push(0x07 | operation, to, 0, 0, immediate);
    }

    pub fn alu_registers(&mut self, operation: u8, to: u8, from: u8) {
        self.push(0x0f | operation, to, from, 0, 0);
    }

    /// `to` = `from` + `immediate`
    pub fn add(&mut self, to: u8, from: u8, immediate: i32) {
        self.alu_registers(MOVE, to, from);
        self.alu(ADD, to, immediate);
    }

    /// The 16 bits of `register` from the network's order to the machine's.
    pub fn machine(&mut self, register: u8) {
        self.push(0xdc, register, 0, 0, 16);
        self.alu(AND, register, 0xffff); // It is so already, which the verifier of Linux 6.12 does not know.
    }

    /// The one's complement sum of what is in `register`, which is less than 2^44, in 16 bits.
    pub fn fold(&mut self, register: u8, scratch: u8) {
        for _ in 0..4 {
            self.alu_registers(MOVE, scratch, register);
            self.alu(SHIFT_RIGHT, scratch, 16);
            self.alu(AND, register, 0xffff);
            self.alu_registers(ADD, register, scratch);
        }
    }

    /// Compares 32 bits.
    pub fn jump(&mut self, condition: u8, register: u8, immediate: i32, to: &'static str) {
        let class = if condition == ALWAYS { 0x05 } else { 0x06 };
        self.jumps.push((self.code.len(), to));
        self.push(class | condition, register, 0, 0, immediate);
    }

    /// Compares 64 bits.
    pub fn jump_registers(&mut self, condition: u8, one: u8, other: u8, to: &'static str) {
        self.jumps.push((self.code.len(), to));
        self.push(0x0d | condition, one, other, 0, 0);
    }

    pub fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.code.len()));
    }

    /// A constant of 64 bits; its `kind` is 0, or 2 for the address of a map's value.
    pub fn wide(&mut self, to: u8, value: u64, kind: u8) {
        self.push(0x18, to, kind, 0, value as i32);
        self.push(0, 0, 0, 0, (value >> 32) as i32);
    }

    pub fn counters(&mut self, map: RawFd) {
        self.wide(COUNTERS, map as u64, 2);
    }

    /// `before` = the counter, which grows by 1, whichever processor does it.
    pub fn increment(&mut self, before: u8, counter: usize) {
        self.alu(MOVE, before, 1);
        self.push(0xdb, COUNTERS, before, 8 * counter as i16, 0x01);
    }

    pub fn end(&mut self, verdict: i32) {
        self.alu(MOVE, SUM, verdict);
        self.push(0x95, 0, 0, 0, 0);
    }

    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, name) in self.jumps {
            let label = self.labels.iter().find(|(label, _)| *label == name).expect("every jump above has its label");
            self.code[at].offset = label.1 as i16 - at as i16 - 1;
        }
        self.code
    }
}
