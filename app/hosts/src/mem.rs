//! Copying memory on x86_64 with musl.
//!
//! musl's x86_64 `memcpy` is one `rep movsq`, whose start-up alone costs more than a row of a convolution's input: it was
//! a fifth of the time of the IMU encoder, which glibc's took a fiftieth of. These are the usual overlapping SSE2 moves
//! (baseline x86_64, no detection). On aarch64 musl brings Arm's optimised routines, and glibc needs no help.
//!
//! Assembly, because a `memcpy` written in Rust is recognised by the compiler as a `memcpy` and calls itself.
#![allow(unsafe_code)]

use std::arch::global_asm;

global_asm!(
    ".pushsection .text.inferd_memmove,\"ax\",@progbits",
    ".p2align 5",
    ".globl inferd_memmove",
    ".hidden inferd_memmove",
    ".type inferd_memmove,@function",
    "inferd_memmove:",
    "    mov rax, rdi",
    "    cmp rdx, 16",
    "    jb 20f",
    "    cmp rdx, 32",
    "    ja 2f",
    // 16..=32: two moves that overlap in the middle; so on up to 128. All loads come before the first store.
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + rdx - 16]",
    "    movups [rdi], xmm0",
    "    movups [rdi + rdx - 16], xmm1",
    "    ret",
    "2:  cmp rdx, 64",
    "    ja 3f",
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups xmm2, [rsi + rdx - 32]",
    "    movups xmm3, [rsi + rdx - 16]",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    movups [rdi + rdx - 32], xmm2",
    "    movups [rdi + rdx - 16], xmm3",
    "    ret",
    "3:  cmp rdx, 128",
    "    ja 4f",
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups xmm2, [rsi + 32]",
    "    movups xmm3, [rsi + 48]",
    "    movups xmm4, [rsi + rdx - 64]",
    "    movups xmm5, [rsi + rdx - 48]",
    "    movups xmm6, [rsi + rdx - 32]",
    "    movups xmm7, [rsi + rdx - 16]",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    movups [rdi + 32], xmm2",
    "    movups [rdi + 48], xmm3",
    "    movups [rdi + rdx - 64], xmm4",
    "    movups [rdi + rdx - 48], xmm5",
    "    movups [rdi + rdx - 32], xmm6",
    "    movups [rdi + rdx - 16], xmm7",
    "    ret",
    // More than 128. When the destination starts inside the source, from the end to the start.
    "4:  mov rcx, rdi",
    "    sub rcx, rsi",
    "    cmp rcx, rdx",
    "    jb 8f",
    // Apart by at least the length and long: here `rep movsb` is at its best.
    "    cmp rdx, 65536",
    "    jb 5f",
    "    neg rcx",
    "    cmp rcx, rdx",
    "    jb 5f",
    "    mov rcx, rdx",
    "    rep movsb",
    "    ret",
    // The last 64 bytes are kept first: the loop may overwrite them.
    "5:  movups xmm4, [rsi + rdx - 64]",
    "    movups xmm5, [rsi + rdx - 48]",
    "    movups xmm6, [rsi + rdx - 32]",
    "    movups xmm7, [rsi + rdx - 16]",
    "    lea r8, [rdi + rdx - 64]",
    "    .p2align 4",
    "6:  movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups xmm2, [rsi + 32]",
    "    movups xmm3, [rsi + 48]",
    "    add rsi, 64",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    movups [rdi + 32], xmm2",
    "    movups [rdi + 48], xmm3",
    "    add rdi, 64",
    "    cmp rdi, r8",
    "    jb 6b",
    "    movups [r8], xmm4",
    "    movups [r8 + 16], xmm5",
    "    movups [r8 + 32], xmm6",
    "    movups [r8 + 48], xmm7",
    "    ret",
    // Backwards, the first 64 bytes kept.
    "8:  movups xmm4, [rsi]",
    "    movups xmm5, [rsi + 16]",
    "    movups xmm6, [rsi + 32]",
    "    movups xmm7, [rsi + 48]",
    "    lea r8, [rdi + 64]",
    "    lea r9, [rdi + rdx]",
    "    lea r10, [rsi + rdx]",
    "    .p2align 4",
    "9:  movups xmm0, [r10 - 16]",
    "    movups xmm1, [r10 - 32]",
    "    movups xmm2, [r10 - 48]",
    "    movups xmm3, [r10 - 64]",
    "    sub r10, 64",
    "    movups [r9 - 16], xmm0",
    "    movups [r9 - 32], xmm1",
    "    movups [r9 - 48], xmm2",
    "    movups [r9 - 64], xmm3",
    "    sub r9, 64",
    "    cmp r9, r8",
    "    ja 9b",
    "    movups [rdi], xmm4",
    "    movups [rdi + 16], xmm5",
    "    movups [rdi + 32], xmm6",
    "    movups [rdi + 48], xmm7",
    "    ret",
    // Below 16.
    "20: cmp rdx, 8",
    "    jb 21f",
    "    mov rcx, [rsi]",
    "    mov r8, [rsi + rdx - 8]",
    "    mov [rdi], rcx",
    "    mov [rdi + rdx - 8], r8",
    "    ret",
    "21: cmp rdx, 4",
    "    jb 22f",
    "    mov ecx, [rsi]",
    "    mov r8d, [rsi + rdx - 4]",
    "    mov [rdi], ecx",
    "    mov [rdi + rdx - 4], r8d",
    "    ret",
    "22: test rdx, rdx",
    "    jz 23f",
    "    movzx ecx, byte ptr [rsi]",
    "    movzx r8d, byte ptr [rsi + rdx - 1]",
    "    mov r9, rdx",
    "    shr r9, 1",
    "    movzx r10d, byte ptr [rsi + r9]",
    "    mov [rdi], cl",
    "    mov [rdi + r9], r10b",
    "    mov [rdi + rdx - 1], r8b",
    "23: ret",
    ".size inferd_memmove, . - inferd_memmove",
    ".popsection",
);

// musl's own are not linked when these are there.
#[cfg(target_env = "musl")]
global_asm!(
    ".globl memcpy",
    ".globl memmove",
    ".hidden memcpy",
    ".hidden memmove",
    ".set memcpy, inferd_memmove",
    ".set memmove, inferd_memmove",
);

#[cfg(test)]
mod tests {
    unsafe extern "C" {
        fn inferd_memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8;
    }

    #[test]
    fn every_length_and_every_overlap_moves_every_byte_and_no_other() {
        let start: Vec<u8> = (0..1_u32 << 12).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
        for n in (0..300).chain([511, 512, 513, 1000, 1024, 1500]) {
            for (from, to) in [0, 1, 7, 15, 16, 17, 63, 64, 65, 127, 130, 299, 600, 2000]
                .into_iter()
                .flat_map(|d| [(50, 50 + d), (50 + d, 50), (33, 34 + d)])
            {
                let (mut got, mut want) = (start.clone(), start.clone());
                want.copy_within(from..from + n, to);
                let p = got.as_mut_ptr();
                // SAFETY: both ranges end before 50 + 2000 + 1500 < 4096.
                let returned = unsafe { inferd_memmove(p.add(to), p.add(from), n) };
                // SAFETY: as above.
                assert_eq!(returned, unsafe { p.add(to) });
                assert_eq!(got, want, "{n} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn long_copies_arrive_whole() {
        let from: Vec<u8> = (0..3_000_001_u32).map(|i| u8::try_from(i * 7 % 253).unwrap()).collect();
        for n in [65_535, 65_536, 65_537, 200_000, 3_000_001] {
            let mut to = vec![0; n];
            // SAFETY: both are at least n bytes long and apart.
            unsafe { inferd_memmove(to.as_mut_ptr(), from.as_ptr(), n) };
            assert!(to == from[..n], "{n} bytes");
        }
    }
}
