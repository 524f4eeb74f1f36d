// Count, mean and sum of squared deviations of a set of values; the sets of two windows, blocks or ranks merge
// without cancellation (Chan, Golub and LeVeque, 1983). Sums of squares are never formed. Few are merged for each
// channel, so that double costs nothing, and the mean is rounded once.

#pragma once

#include "port.cuh"

namespace bnfold {

struct Moments {
    double count = 0, mean = 0, m2 = 0;
};

BNFOLD_DEVICE Moments merged(const Moments& a, const Moments& b) {
    if (b.count == 0) return a;
    if (a.count == 0) return b;
    const double count = a.count + b.count;
    const double part = b.count / count;
    const double gap = b.mean - a.mean;
    return {count, a.mean + gap * part, a.m2 + b.m2 + gap * gap * (a.count * part)};
}

// Those of `count` values, from the sums of their deviations, and of the deviations' squares, from a value near
// their mean.
BNFOLD_DEVICE Moments from_deviations(double count, float near, float sum, float squares) {
    if (count == 0) return {};
    const double off = sum / count;
    const double m2 = squares - sum * off;
    return {count, near + off, m2 < 0 ? 0 : m2};  // not a maximum, which would lose NaN
}

BNFOLD_DEVICE double shuffle_xor(double value, int mask) {
    struct Words {
        float first, second;
    };
    const auto words = __builtin_bit_cast(Words, value);
    return __builtin_bit_cast(double, Words{port::shuffle_xor(words.first, mask),
                                            port::shuffle_xor(words.second, mask)});
}

// The same result in both lanes: the lower one's set comes first.
BNFOLD_DEVICE Moments merged_with_lane(const Moments& mine, int mask) {
    const Moments other = {shuffle_xor(mine.count, mask), shuffle_xor(mine.mean, mask), shuffle_xor(mine.m2, mask)};
    return (port::thread() & mask) == 0 ? merged(mine, other) : merged(other, mine);
}

// What backward sums: of dz, and of dz * (x - mean).
struct Sums {
    float dz = 0, dz_x = 0;
};

BNFOLD_DEVICE Sums merged(const Sums& a, const Sums& b) { return {a.dz + b.dz, a.dz_x + b.dz_x}; }

BNFOLD_DEVICE Sums merged_with_lane(const Sums& mine, int mask) {
    return {mine.dz + port::shuffle_xor(mine.dz, mask), mine.dz_x + port::shuffle_xor(mine.dz_x, mask)};
}

}  // namespace bnfold
