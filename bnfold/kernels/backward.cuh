// The gradients of forward.cuh: dz is dy where the ReLU let the value pass, and
//
//   dx = weight * invstd * (dz - mean(dz) - (x - mean) * invstd^2 * mean(dz * (x - mean)))
//
// with the means over a channel, or without them for frozen statistics. One launch, which reads x and dy once if a
// unit's blocks can hold both on chip.

#pragma once

#include "normalize.cuh"
#include "reduce.cuh"

namespace bnfold {

// What the gradient of one channel's values needs.
struct Slope : Affine {
    float mean_dz, mean_dz_x;   // the second times invstd^2

    BNFOLD_DEVICE float operator()(float x, float dz) const {
        // Where x is of no consequence, as with frozen statistics, it may be infinite or NaN.
        const float through_x = mean_dz_x == 0 ? 0 : (x - mean) * mean_dz_x;
        return scale * (dz - mean_dz - through_x);
    }
};

// What is loaded of one vector.
template <class T, int V>
struct Given {
    Vector<T, V> x, dz;
    unsigned bits = 0;

    Given() = default;
    BNFOLD_DEVICE Given(const T* x_at, const T* dy_at, const unsigned char* mask, long long place)
        : x(load<T, V>(x_at + place)), dz(load<T, V>(dy_at + place)), bits(mask ? mask[place / V] : 0) {}

    // Makes dz of dy. The side of the ReLU is that which forward noted in the mask, or is found again from x.
    template <class Affines>
    BNFOLD_DEVICE void pass(const Affines& affines, bool noted, bool relu) {
        if (!relu) return;
        affines.each([&](int j, const Affine& affine) {
            const bool kept = noted ? (bits >> j & 1u) != 0
                                    : !(to_float(from_float<T>(affine(to_float(x.values[j])))) <= 0);
            if (!kept) dz.values[j] = from_float<T>(0);
        });
    }
};

// Writes dx and, where there is a residual, its gradient dz.
template <class T, int V, class Slopes>
BNFOLD_DEVICE void put_gradients(const Vector<T, V>& x, const Vector<T, V>& dz, const Slopes& slopes, T* dx,
                                 T* dresidual, long long place) {
    Vector<T, V> out;
    slopes.each([&](int j, const Slope& slope) {
        out.values[j] = from_float<T>(slope(to_float(x.values[j]), to_float(dz.values[j])));
    });
    store<T, V>(dx + place, out);
    if (dresidual) store<T, V>(dresidual + place, dz);
}

template <class P>
BNFOLD_DEVICE Affine affine_of(int channel, const P* weight, const P* bias, const float* mean, const float* invstd) {
    return {mean[channel], weight ? to_float(weight[channel]) * invstd[channel] : invstd[channel],
            bias ? to_float(bias[channel]) : 0};
}

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(512)
backward(const T* x, const T* dy, const unsigned char* mask, const P* weight, const P* bias, const float* mean,
         const float* invstd, T* dx, T* dresidual, P* dweight, P* dbias, float* sum_dz, float* sum_dz_x,
         Sums* letters, unsigned* words, long long outer, int channels, int inner, int group, int ranks, int window,
         int relu, int frozen) {
    constexpr int A = L == Layout::columns ? V : 1;
    const Shape shape = {outer, channels, inner, group, ranks, window};
    auto* staged_x = reinterpret_cast<Vector<T, V>*>(port::shared());
    auto* staged_dz = staged_x + window;
    auto* affine = reinterpret_cast<Affine*>(staged_dz + window);
    auto* slope = reinterpret_cast<Slope*>(affine + kMostChannels);
    auto* merged_sets = reinterpret_cast<Sums*>(slope + kMostChannels);
    auto* scratch = reinterpret_cast<Pair*>(merged_sets + 2 * kMostChannels);
    const Mailbox<Sums> box = {merged_sets, letters, words};

    const int c = port::thread(), rank = port::block() % ranks;
    const int units = (channels + group - 1) / group;
    for (int unit = port::block() / ranks; unit < units; unit += port::blocks() / ranks) {
        const Part<V, L> part(shape, unit, rank);
        const int windows = part.windows();
        const int channel = part.first + c;
        if (c < part.width) affine[c] = affine_of(channel, weight, bias, mean, invstd);
        port::sync_block();
        const Channels<V, L> affines(part, affine);
        const int period = L == Layout::columns ? static_cast<int>(part.row) : 1;
        const auto add = [](Pair& to, float x_value, float dz_value, float from) {
            to.a += dz_value;
            to.b += dz_value * (x_value - from);
        };
        const auto given = [&](int, long long place) { return Given<T, V>(x, dy, mask, place); };
        Sums mine;
        Pair sums[A];   // over all windows, but for `planes`, whose warps change channels between windows
        for (int i = 0; i < windows; ++i) {
            const Window<V, L> here(part, i);
            here.template each_vector<2>(given, [&](int slot, long long, unsigned offset, Given<T, V>& found) {
                found.pass(affines.at(offset), mask != nullptr, relu != 0);
                staged_x[slot] = found.x;
                staged_dz[slot] = found.dz;
                if constexpr (L != Layout::planes) {
                    affines.at(offset).each([&](int j, const Affine& a) {
                        add(sums[j % A], to_float(found.x.values[j]), to_float(found.dz.values[j]), a.mean);
                    });
                }
            });
            if constexpr (L == Layout::planes) {
                port::sync_block();
                const Sweep<V> sweep(here);
                const float from = affine[sweep.channel()].mean;
                const T* x_values = reinterpret_cast<const T*>(staged_x);
                const T* dz_values = reinterpret_cast<const T*>(staged_dz);
                Pair of_window[1];
                sweep.each_value([&](unsigned k) {
                    add(of_window[0], to_float(x_values[k]), to_float(dz_values[k]), from);
                });
                put_sums(of_window, 1, scratch);
                if (c < part.width) {
                    const Pair sum = take_sum(scratch, 1, 0, sweep.first_warp(c), sweep.present);
                    mine = merged(mine, Sums{sum.a, sum.b});
                }
                // The next window's first barrier comes before anything that this one reads is changed.
            }
        }
        if constexpr (L != Layout::planes) {
            put_sums(sums, period, scratch);
            if (c < part.width) {
                const Pair sum = take_sum(scratch, A * period, c, 0, 1);
                mine = {sum.a, sum.b};
            }
        }
        exchange<E>(mine, shape, part.width, unit, rank, box);
        if (c < part.width) {
            const Sums all = merged_sets[c];
            const float inverse = invstd[channel];
            const float share = 1.0f / (static_cast<float>(outer) * static_cast<float>(inner));
            slope[c] = {affine[c], frozen ? 0 : all.dz * share, frozen ? 0 : all.dz_x * share * inverse * inverse};
            if (rank == 0) {
                if (dweight) dweight[channel] = from_float<P>(all.dz_x * inverse);
                if (dbias) dbias[channel] = from_float<P>(all.dz);
                if (sum_dz) {
                    sum_dz[channel] = all.dz;
                    sum_dz_x[channel] = all.dz_x;
                }
            }
        }
        port::sync_block();
        if (dx) {
            const Channels<V, L, Slope> slopes(part, slope);
            for (int i = windows; i-- > 0;) {
                const Window<V, L> here(part, i);
                if (i == windows - 1) {
                    here.template each_vector<1>(
                        [&](int slot, long long) { return slot; },
                        [&](int, long long place, unsigned offset, int slot) {
                            put_gradients<T, V>(staged_x[slot], staged_dz[slot], slopes.at(offset), dx, dresidual,
                                                place);
                        });
                } else {
                    here.template each_vector<2>(
                        given, [&](int, long long place, unsigned offset, Given<T, V>& found) {
                            found.pass(slopes.at(offset), mask != nullptr, relu != 0);
                            put_gradients<T, V>(found.x, found.dz, slopes.at(offset), dx, dresidual, place);
                        });
                }
            }
        }
        // As in forward: nothing that this unit still reads is changed before the next one's first barrier.
    }
}

}  // namespace bnfold
