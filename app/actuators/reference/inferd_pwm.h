/* The PWM lines of inferd: the receiver's side, for the microcontroller that drives the servos.
 *
 * Freestanding C99: no library, no memory but what is handed in. app/actuators/README.md says what a receiver must do.
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef INFERD_PWM_H
#define INFERD_PWM_H

#include <stdint.h>

#define INFERD_PWM_MAX_JOINTS 32u
#define INFERD_PWM_LEAST_US 1000u
#define INFERD_PWM_MOST_US 2000u
/* Without a line for so long the link is lost: twelve lines at 50 a second. */
#define INFERD_PWM_TIMEOUT_MS 250u

typedef struct {
    /* Pulse widths of the last whole line, in microseconds. */
    uint16_t us[INFERD_PWM_MAX_JOINTS];
    /* Lines that were no line of so many joints; wraps. */
    uint32_t refused;
    /* The rest is its own. */
    uint16_t next[INFERD_PWM_MAX_JOINTS];
    uint32_t last_ms;
    uint32_t timeout_ms;
    uint16_t value;
    uint8_t joints;
    uint8_t place;
    uint8_t digits;
    uint8_t state;
    uint8_t alive;
} inferd_pwm;

/* Makes it ready for lines of 1 to 32 joints; without a line the link is lost. */
void inferd_pwm_begin(inferd_pwm *pwm, uint8_t joints, uint32_t timeout_ms);

/* Takes a byte that came at this time of a clock in milliseconds, which wraps. Returns 1 when it ended a whole line, whose pulse widths
 * are in `us` then; a line with anything else in it changes nothing. */
int inferd_pwm_push(inferd_pwm *pwm, uint8_t byte, uint32_t now_ms);

/* Whether the last line came less than the timeout ago. When it did not, stop the servos: switch their pulses off or go to the
 * neutral pose slowly. Ask it every time round the main loop; once lost, the link stays lost until the next whole line. */
int inferd_pwm_alive(inferd_pwm *pwm, uint32_t now_ms);

#endif
