// What forward makes of the statistics of a channel: y's map, what backward needs, and the running statistics.

#pragma once

#include "moments.cuh"
#include "normalize.cuh"

namespace bnfold {

template <class P>
struct Outcome {
    float *mean, *invstd;
    P *running_mean, *running_var;
    long long* batches;
    float values, share, eps, momentum;   // the values of a channel, and 1 / their number
    bool bare;                     // y is not wanted; but, in place of invstd, the sum of squared deviations

    BNFOLD_DEVICE float inverse(float m2) const { return 1.0f / port::square_root(m2 * share + eps); }

    // By one thread of the device for each channel.
    BNFOLD_DEVICE void note(int channel, float average, float m2) const {
        mean[channel] = average;
        invstd[channel] = bare ? m2 : inverse(m2);
        if (running_mean) {
            const float part_of_batch = momentum < 0 ? 1.0f / static_cast<float>(*batches) : momentum;
            const auto toward = [&](P* at, float value) {
                *at = from_float<P>((1 - part_of_batch) * to_float(*at) + part_of_batch * value);
            };
            toward(running_mean + channel, average);
            toward(running_var + channel, m2 / (values - 1));
        }
    }

    // By one thread of the device.
    BNFOLD_DEVICE void count() const {
        if (batches && momentum >= 0) *batches += 1;
    }
};

// What the statistics of a channel begin with: a value near its mean, and its parameters.
struct Known {
    float near, weight, bias;

    template <class P>
    BNFOLD_DEVICE Affine affine(const Moments& all, const Outcome<P>& outcome) const {
        return {near + all.off, weight * outcome.inverse(all.m2), bias};
    }
};

// Of the unit's channel c.
template <class T, class P, int V, Layout L>
BNFOLD_DEVICE Known known_of(const Part<V, L>& part, const T* x, int c, const P* weight, const P* bias) {
    const int channel = part.first + c;
    return {part.near(x, c), weight ? to_float(weight[channel]) : 1, bias ? to_float(bias[channel]) : 0};
}

}  // namespace bnfold
