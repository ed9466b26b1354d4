/* SPDX-License-Identifier: Apache-2.0 OR MIT */
#include "inferd_pwm.h"

/* Characters of "PWM:" that were read, then numbers, then a line that is passed over up to its end. */
enum { NUMBERS = 4, PASSED_OVER = 5 };

static void anew(inferd_pwm *pwm) {
    pwm->state = 0;
    pwm->place = 0;
    pwm->digits = 0;
    pwm->value = 0;
}

void inferd_pwm_begin(inferd_pwm *pwm, uint8_t joints, uint32_t timeout_ms) {
    pwm->joints = joints <= INFERD_PWM_MAX_JOINTS ? joints : (uint8_t)INFERD_PWM_MAX_JOINTS;
    pwm->timeout_ms = timeout_ms;
    pwm->last_ms = 0;
    pwm->refused = 0;
    pwm->alive = 0;
    anew(pwm);
}

/* Ends a number; 0 when it is none of a line. */
static int number(inferd_pwm *pwm) {
    if (pwm->digits != 4 || pwm->place >= pwm->joints || pwm->value < INFERD_PWM_LEAST_US ||
        pwm->value > INFERD_PWM_MOST_US) {
        return 0;
    }
    pwm->next[pwm->place] = pwm->value;
    pwm->place++;
    pwm->digits = 0;
    pwm->value = 0;
    return 1;
}

int inferd_pwm_push(inferd_pwm *pwm, uint8_t byte, uint32_t now_ms) {
    static const uint8_t head[NUMBERS] = {'P', 'W', 'M', ':'};
    if (byte == '\n') {
        const int whole = pwm->state == NUMBERS && number(pwm) && pwm->place == pwm->joints;
        if (whole) {
            for (uint8_t i = 0; i < pwm->joints; i++) {
                pwm->us[i] = pwm->next[i];
            }
            pwm->last_ms = now_ms;
            pwm->alive = 1;
        } else {
            pwm->refused++;
        }
        anew(pwm);
        return whole;
    }
    if (pwm->state < NUMBERS) {
        pwm->state = byte == head[pwm->state] ? (uint8_t)(pwm->state + 1) : (uint8_t)PASSED_OVER;
    } else if (pwm->state == NUMBERS) {
        if (byte >= '0' && byte <= '9' && pwm->digits < 4) {
            pwm->value = (uint16_t)(pwm->value * 10u + (uint16_t)(byte - '0'));
            pwm->digits++;
        } else if (byte != ',' || !number(pwm)) {
            pwm->state = PASSED_OVER;
        }
    }
    return 0;
}

int inferd_pwm_alive(inferd_pwm *pwm, uint32_t now_ms) {
    if (pwm->alive && (uint32_t)(now_ms - pwm->last_ms) >= pwm->timeout_ms) {
        pwm->alive = 0;
    }
    return pwm->alive;
}
