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

// Which values passed the ReLU: all where there is none; those that forward noted in the mask; or it is found again
// from x.
enum class Gate { open, noted, again };

// The tensors that backward reads.
template <class T>
struct Source {
    const T *x, *dy;
    const unsigned char* mask;
};

// What is loaded of one vector.
template <Gate G, class T, int V>
struct Given {
    Vector<T, V> x, dy;
    unsigned char bits;

    Given() = default;
    BNFOLD_DEVICE Given(const Source<T>& from, long long place)
        : x(load<T, V>(from.x + place)), dy(load<T, V>(from.dy + place)),
          bits(G == Gate::noted ? from.mask[number<V>(place)] : 0) {}

    template <class Affines>
    BNFOLD_DEVICE Vector<T, V> dz(const Affines& affines) const {
        if constexpr (G == Gate::open) return dy;
        if constexpr (G == Gate::noted) return where_passed(dy, static_cast<unsigned>(bits));
        if constexpr (G == Gate::again) return where_passed(dy, finished<true, T>(mapped(x, affines)));
    }
};

// Where backward writes dx and, where there is a residual behind the ReLU, its gradient dz.
template <class T>
struct Gradients {
    T *dx, *dresidual;

    template <int V, class Slopes>
    BNFOLD_DEVICE void put(const Vector<T, V> x, const Vector<T, V> dz, const Slopes& slopes, long long place) const {
        Floats<V> xs = floats_of(x);
        const Floats<V> dzs = floats_of(dz);
        slopes.each([&](int j, const Slope& slope) { xs.values[j] = slope(xs.values[j], dzs.values[j]); });
        store<T, V>(dx + place, vector_of<T>(xs));
        if (dresidual) store<T, V>(dresidual + place, dz);
    }

    // Of a window that is read, or read again.
    template <Gate G, int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T>& from,
                                  const Channels<V, L, Slope>& slopes) const {
        window.template each_vector<2>(
            [&](int, long long place) { return Given<G, T, V>(from, place); },
            [&](int, long long place, unsigned offset, const Given<G, T, V>& given) {
                put<V>(given.x, given.dz(slopes.at(offset)), slopes.at(offset), place);
            });
    }
    template <int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T>& from,
                                  const Channels<V, L, Slope>& slopes, bool relu) const {
        if (!relu) {
            put_window<Gate::open>(window, from, slopes);
        } else if (from.mask) {
            put_window<Gate::noted>(window, from, slopes);
        } else {
            put_window<Gate::again>(window, from, slopes);
        }
    }
};

// x and dz of a window: put into shared memory and, but for `planes`, added up.
template <class T, int V, Layout L>
struct Stage {
    static constexpr int A = L == Layout::columns ? V : 1;
    Vector<T, V>*x, *dz;

    template <Gate G>
    BNFOLD_DEVICE void take(const Window<V, L>& window, const Source<T>& from, const Channels<V, L>& affines,
                            Pair (&sums)[A]) const {
        window.template each_vector<2>(
            [&](int, long long place) { return Given<G, T, V>(from, place); },
            [&](int slot, long long, unsigned offset, const Given<G, T, V>& given) {
                const Vector<T, V> found = given.dz(affines.at(offset));
                x[slot] = given.x;
                dz[slot] = found;
                if constexpr (L != Layout::planes) {
                    const Floats<V> xs = floats_of(given.x), dzs = floats_of(found);
                    affines.at(offset).each([&](int j, const Affine& affine) {
                        sums[j % A].a += dzs.values[j];
                        sums[j % A].b += dzs.values[j] * (xs.values[j] - affine.mean);
                    });
                }
            });
    }
    BNFOLD_DEVICE void take(const Window<V, L>& window, const Source<T>& from, const Channels<V, L>& affines,
                            Pair (&sums)[A], bool relu) const {
        if (!relu) {
            take<Gate::open>(window, from, affines, sums);
        } else if (from.mask) {
            take<Gate::noted>(window, from, affines, sums);
        } else {
            take<Gate::again>(window, from, affines, sums);
        }
    }
};

template <class P>
BNFOLD_DEVICE Affine affine_of(int channel, const P* weight, const P* bias, const float* mean, const float* invstd) {
    return {mean[channel], weight ? to_float(weight[channel]) * invstd[channel] : invstd[channel],
            bias ? to_float(bias[channel]) : 0};
}

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(kThreads)
backward(const T* x, const T* dy, const unsigned char* mask, const P* weight, const P* bias, const float* mean,
         const float* invstd, T* dx, T* dresidual, P* dweight, P* dbias, float* sum_dz, float* sum_dz_x,
         Sums* letters, unsigned* words, long long outer, int channels, int inner, int group, int ranks, int window,
         int relu, int frozen) {
    constexpr int A = L == Layout::columns ? V : 1;
    const Shape shape = {outer, channels, inner, group, ranks, window};
    const Source<T> source = {x, dy, mask};
    const Gradients<T> gradients = {dx, dresidual};
    auto* staged_x = reinterpret_cast<Vector<T, V>*>(port::shared());
    const Stage<T, V, L> stage = {staged_x, staged_x + window};
    auto* affine = reinterpret_cast<Affine*>(stage.dz + window);
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
        Sums mine;
        Pair sums[A];   // over all windows, but for `planes`, whose warps change channels between windows
        for (int i = 0; i < windows; ++i) {
            const Window<V, L> here(part, i);
            stage.take(here, source, affines, sums, relu != 0);
            if constexpr (L == Layout::planes) {
                port::sync_block();
                const Sweep<V> sweep(here);
                const float from = affine[sweep.channel()].mean;
                const T* x_values = reinterpret_cast<const T*>(stage.x);
                const T* dz_values = reinterpret_cast<const T*>(stage.dz);
                Pair of_window[1];
                sweep.each_value([&](unsigned k) {
                    const float dz_value = to_float(dz_values[k]);
                    of_window[0].a += dz_value;
                    of_window[0].b += dz_value * (to_float(x_values[k]) - from);
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
                            gradients.template put<V>(stage.x[slot], stage.dz[slot], slopes.at(offset), place);
                        });
                } else {
                    gradients.put_window(here, source, slopes, relu != 0);
                }
            }
        }
        // As in forward: nothing that this unit still reads is changed before the next one's first barrier.
    }
}

}  // namespace bnfold
