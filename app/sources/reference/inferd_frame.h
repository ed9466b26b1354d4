/* The framed serial protocol of inferd, version 1: the sender's side, for a microcontroller.
 *
 * Freestanding C99: no library, no memory but what is handed in, no state. app/sources/README.md has the format.
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef INFERD_FRAME_H
#define INFERD_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define INFERD_FRAME_MAX_CHANNELS 32u
#define INFERD_FRAME_MAX_VALUES 512u
/* The bytes of a frame of so many channels and steps. */
#define INFERD_FRAME_BYTES(channels, steps) (18u + 2u * (size_t)(channels) * (size_t)(steps))
#define INFERD_FRAME_MAX_BYTES 1042u

/* The sender lost samples before this frame. */
#define INFERD_FRAME_LOST 1u
/* A value of this frame was clipped by the converter. */
#define INFERD_FRAME_CLIPPED 2u

/* CRC-16/IBM-3740: begin with 0xFFFF. */
uint16_t inferd_crc16(uint16_t crc, const uint8_t *bytes, size_t count);

/* Writes a frame to `out`, which has room for `room` bytes, and returns its length; 0 when the numbers cannot be or
 * there is no room.
 *   sequence      number of the first step since the start, wrapping: add `steps` for each frame, also for one that
 *                 could not be sent
 *   timestamp_us  the sender's clock at the first step, wrapping
 *   samples       channels * steps values, step by step, in a step channel by channel
 */
size_t inferd_frame_encode(uint8_t *out, size_t room, uint32_t sequence, uint32_t timestamp_us, uint8_t channels,
                           uint8_t steps, uint8_t flags, const int16_t *samples);

#endif
