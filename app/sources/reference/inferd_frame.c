/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "inferd_frame.h"

/* Without a table: 8 steps a byte. */
uint16_t inferd_crc16(uint16_t crc, const uint8_t *bytes, size_t count)
{
    size_t i;
    int bit;

    for (i = 0; i < count; i++) {
        crc = (uint16_t)(crc ^ ((unsigned)bytes[i] << 8));
        for (bit = 0; bit < 8; bit++)
            crc = (uint16_t)((crc & 0x8000u) ? ((unsigned)crc << 1) ^ 0x1021u : (unsigned)crc << 1);
    }
    return crc;
}

static uint8_t *put16(uint8_t *out, unsigned value)
{
    out[0] = (uint8_t)(value & 0xFFu);
    out[1] = (uint8_t)((value >> 8) & 0xFFu);
    return out + 2;
}

static uint8_t *put32(uint8_t *out, uint32_t value)
{
    out = put16(out, (unsigned)(value & 0xFFFFu));
    return put16(out, (unsigned)(value >> 16));
}

size_t inferd_frame_encode(uint8_t *out, size_t room, uint32_t sequence, uint32_t timestamp_us, uint8_t channels,
                           uint8_t steps, uint8_t flags, const int16_t *samples)
{
    const size_t values = (size_t)channels * steps;
    uint8_t *at = out;
    size_t i;

    if (channels == 0 || channels > INFERD_FRAME_MAX_CHANNELS || steps == 0 || values > INFERD_FRAME_MAX_VALUES)
        return 0;
    if (room < INFERD_FRAME_BYTES(channels, steps))
        return 0;
    *at++ = 0xA5;
    *at++ = 0x5A;
    *at++ = 1;
    *at++ = channels;
    *at++ = steps;
    *at++ = flags;
    at = put32(at, sequence);
    at = put32(at, timestamp_us);
    at = put16(at, inferd_crc16(0xFFFF, out, 14));
    for (i = 0; i < values; i++)
        at = put16(at, (unsigned)(uint16_t)samples[i]);
    at = put16(at, inferd_crc16(0xFFFF, out, (size_t)(at - out)));
    return (size_t)(at - out);
}
