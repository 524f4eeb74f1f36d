// What is known of a set of values of a channel, in two floats, and how the sets of threads, blocks and processes
// become one. The number of a set's values is known from its place, or stands beside it.

#pragma once

#include "port.cuh"

namespace bnfold {

// How far the mean lies from a value that all sets of the channel share, and the sum of squared deviations from the
// mean. That value is near the mean, so that its digits are not lost; sums of squares of values are never formed.
struct alignas(8) Moments {
    float off = 0, m2 = 0;
};

BNFOLD_DEVICE bool is_finite(float value) { return value - value == 0; }

// The middle one of three values, which one outlier does not move; 0 if it is no finite number.
BNFOLD_DEVICE float middle(float a, float b, float c) {
    const float low = a < b ? a : b, high = a < b ? b : a;
    const float found = c < low ? low : c > high ? high : c;
    return is_finite(found) ? found : 0;
}

// One thread's values of a channel in one sweep: sums of their deviations from the first one, and of the squares.
// If that is no finite number, deviations are from 0: so a sum is infinite or NaN where that of the values is.
//
// (first - mean)^2 is at most (n - 1) times the variance of n values: so much larger than a rounding the variance's
// error may become at most, as it does where the first one alone differs from all others.
struct Deviations {
    float from = 0, sum = 0, squares = 0;

    BNFOLD_DEVICE void begin(float first) { *this = {is_finite(first) ? first : 0, 0, 0}; }
    BNFOLD_DEVICE void add(float value) {
        const float d = value - from;
        sum += d;
        squares += d * d;
    }
    // From their mean so far, of `count` values: of n, (from - mean)^2 is then at most n / count - 1 times the variance.
    BNFOLD_DEVICE void centre(float count, float share) {
        const float to = from + sum * share;
        if (!is_finite(to)) return;
        const float by = to - from, rest = sum - count * by;
        *this = {to, rest, squares - by * (sum + rest)};
    }
    // share: 1 / the number of values. By rounding, the second may be a little below zero.
    BNFOLD_DEVICE Moments moments(float share, float near) const {
        const float part = sum * share;
        return {from - near + part, squares - sum * part};
    }
};

// How two sets of so many values weigh in their union.
struct Weights {
    float first, second, between;

    BNFOLD_DEVICE Weights(float a, float b) {
        const float all = a + b, share = port::reciprocal(all < 1 ? 1 : all);
        first = a * share;
        second = b * share;
        between = a * second;
    }
};

BNFOLD_DEVICE Moments merged(const Moments& a, const Moments& b, const Weights& weights) {
    const float gap = b.off - a.off;
    return {a.off * weights.first + b.off * weights.second, a.m2 + b.m2 + gap * gap * weights.between};
}

// What backward sums: of dz, and of dz * (x - mean).
struct alignas(8) Sums {
    float dz = 0, dz_x = 0;
};

}  // namespace bnfold
