// Batch norm in training: y = act((x - mean) / sqrt(var + eps) * weight + bias + residual) with the mean and
// variance of each channel, in one launch that reads x once if a unit's blocks can hold it on chip.
//
// Of each window, first the mean, then the squared deviations from it, both from shared memory; windows and blocks
// merge by Chan's formula. The last window is still at hand when the statistics are known; those before it are
// read again, the latest first, for they are the likeliest to be in L2.

#pragma once

#include "forward_ring.cuh"

namespace bnfold {

template <class T, int V, Layout L>
BNFOLD_DEVICE Moments of_window(const Window<V, L>& window, const T* x, Vector<T, V>* staged, Pair* scratch,
                                float* near) {
    constexpr int A = L == Layout::columns ? V : 1;
    const int c = port::thread(), width = window.part.width;
    const int period = L == Layout::columns ? static_cast<int>(window.part.row) : 1;
    Pair sums[A];
    window.template each_vector<4>(
        [&](int, long long place) { return load<T, V>(x + place); },
        [&](int slot, long long, unsigned, const Vector<T, V>& vector) {
            staged[slot] = vector;
            if constexpr (L != Layout::planes) {
                const Floats<V> found = floats_of(vector);
#pragma unroll
                for (int j = 0; j < V; ++j) sums[j % A].a += found.values[j];
            }
        });
    const double count = c < width ? window.values_of(c) : 0;
    const auto total = [&](Pair(&of)[A]) -> Pair {
        put_sums(of, period, scratch);
        Pair sum;
        if constexpr (L == Layout::planes) {
            const Sweep<V> sweep(window);
            if (c < width) sum = take_sum(scratch, 1, 0, sweep.first_warp(c), sweep.present);
        } else {
            if (c < width) sum = take_sum(scratch, A * period, c, 0, 1);
        }
        return sum;
    };
    const T* values = reinterpret_cast<const T*>(staged);
    if constexpr (L == Layout::planes) {
        port::sync_block();
        Sweep<V>(window).each_value([&](unsigned i) { sums[0].a += to_float(values[i]); });
    }
    const Pair sum = total(sums);
    if (c < width) near[c] = count == 0 ? 0 : static_cast<float>(sum.a / count);
    port::sync_block();

    Pair deviations[A];
    const auto add = [&](Pair& to, float value, float from) {
        const float d = value - from;
        to.a += d;
        to.b += d * d;
    };
    if constexpr (L == Layout::planes) {
        const Sweep<V> sweep(window);
        const float from = near[sweep.channel()];
        sweep.each_value([&](unsigned i) { add(deviations[0], to_float(values[i]), from); });
    } else {
        float from[A];
#pragma unroll
        for (int i = 0; i < A; ++i) {
            const int channel = port::thread() % period * A + i;
            from[i] = near[channel < width ? channel : 0];
        }
        window.template each_vector<2>(
            [&](int slot, long long) { return staged[slot]; },
            [&](int, long long, unsigned, const Vector<T, V>& vector) {
                const Floats<V> found = floats_of(vector);
#pragma unroll
                for (int j = 0; j < V; ++j) add(deviations[j % A], found.values[j], from[j % A]);
            });
    }
    const Pair found = total(deviations);
    return c < width ? from_deviations(count, near[c], found.a, found.b) : Moments{};
}

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(kThreads)
forward(const T* x, const T* residual, T* y, unsigned char* mask, const P* weight, const P* bias, float* mean,
        float* invstd, P* running_mean, P* running_var, long long* batches, Moments* letters, unsigned* words,
        long long outer, int channels, int inner, int group, int ranks, int window, float eps, float momentum,
        int relu) {
    // Where one file is compiled for many architectures, some have an instance that is never launched.
    if (E == Exchange::cluster && !port::has_clusters) return;
    const Shape shape = {outer, channels, inner, group, ranks, window};
    const Outcome<P> outcome = {weight,       bias,    mean, invstd,   running_mean,
                                running_var, batches, eps,  momentum, y != nullptr};
    outcome.count_batch();
    if constexpr (E == Exchange::ring) {
        auto* told = reinterpret_cast<Letter*>(letters);
        ForwardRing<T, P, V, L>{shape, x, residual, y, mask, outcome, told, words}.pass(relu != 0);
        return;
    }
    char* memory = port::shared();
    auto* staged = reinterpret_cast<Vector<T, V>*>(memory);
    auto* affine = reinterpret_cast<Affine*>(staged + window);
    auto* merged_sets = reinterpret_cast<Moments*>(affine + kMostChannels);
    auto* near = reinterpret_cast<float*>(merged_sets + 2 * kMostChannels);
    auto* scratch = reinterpret_cast<Pair*>(near + kMostChannels);
    const Mailbox<Moments> box = {merged_sets, letters, words};

    const int c = port::thread(), rank = port::block() % ranks;
    const int units = (channels + group - 1) / group;
    for (int unit = port::block() / ranks; unit < units; unit += port::blocks() / ranks) {
        const Part<V, L> part(shape, unit, rank);
        const int windows = part.windows();
        Moments mine;
        for (int i = 0; i < windows; ++i) {
            mine = merged(mine, of_window<T, V, L>(Window<V, L>(part, i), x, staged, scratch, near));
            port::sync_block();
        }
        exchange<E>(mine, shape, part.width, unit, rank, box);
        if (c < part.width) {
            affine[c] = outcome.of(part.first + c, merged_sets[c], rank == 0);
        }
        port::sync_block();
        if (y) {
            const Channels<V, L> affines(part, affine);
            for (int i = windows; i-- > 0;) {
                const Window<V, L> here(part, i);
                // Two calls: NVRTC 13.0 takes a generic lambda for a host function.
                if (i == windows - 1) {
                    const auto at_hand = [&](int slot, long long) { return staged[slot]; };
                    normalize<2, T, V>(here, at_hand, affines, residual, y, mask, relu != 0);
                } else {
                    const auto again = [&](int, long long place) { return load<T, V>(x + place); };
                    normalize<2, T, V>(here, again, affines, residual, y, mask, relu != 0);
                }
            }
        }
        // The next unit's first barrier comes before it changes anything that this one reads.
    }
}

}  // namespace bnfold
