// What forward makes of the statistics of a channel: y's map, what backward needs, and the running statistics.

#pragma once

#include "moments.cuh"
#include "normalize.cuh"

namespace bnfold {

template <class P>
struct Outcome {
    const P *weight, *bias;
    float *mean, *invstd;
    P *running_mean, *running_var;
    long long* batches;
    float eps, momentum;
    bool normalizes;   // y is wanted; else, in place of invstd, the sum of squared deviations

    // Of all blocks that know it, one `notes` it.
    BNFOLD_DEVICE Affine of(int channel, const Moments& all, bool notes) const {
        const float average = static_cast<float>(all.mean);
        const float variance = static_cast<float>(all.m2 / all.count);
        const float inverse = 1.0f / port::square_root(variance + eps);
        if (notes) {
            mean[channel] = average;
            invstd[channel] = normalizes ? inverse : static_cast<float>(all.m2);
            if (running_mean) {
                const float part_of_batch = momentum < 0 ? 1.0f / static_cast<float>(*batches) : momentum;
                const auto toward = [&](P* at, float value) {
                    *at = from_float<P>((1 - part_of_batch) * to_float(*at) + part_of_batch * value);
                };
                toward(running_mean + channel, average);
                toward(running_var + channel, static_cast<float>(all.m2 / (all.count - 1)));
            }
        }
        return {average, weight ? to_float(weight[channel]) * inverse : inverse, bias ? to_float(bias[channel]) : 0};
    }

    // Called by each block once.
    BNFOLD_DEVICE void count_batch() const {
        if (batches && momentum >= 0 && port::block() == 0 && port::thread() == 0) *batches += 1;
    }
};

}  // namespace bnfold
