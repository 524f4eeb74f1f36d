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
template <class T, int V>
struct Source {
    const T *x, *dy;
    const unsigned char* mask;

    // From a place on.
    BNFOLD_DEVICE Source at(long long origin) const {
        return {x + origin, dy + origin, mask ? mask + origin / V : nullptr};
    }
};

// What is loaded of one vector.
template <Gate G, class T, int V>
struct Given {
    Vector<T, V> x, dy;
    unsigned char bits;

    Given() = default;
    template <class Index>
    BNFOLD_DEVICE Given(const Source<T, V>& from, Index place)
        : x(load<T, V>(from.x, place)), dy(load<T, V>(from.dy, place)),
          bits(G == Gate::noted ? from.mask[place] : 0) {}

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

    // From a place on.
    BNFOLD_DEVICE Gradients at(long long origin) const {
        return {dx + origin, dresidual ? dresidual + origin : nullptr};
    }

    template <int V, class Slopes, class Index>
    BNFOLD_DEVICE void put(const Vector<T, V> x, const Vector<T, V> dz, const Slopes& slopes, Index place) const {
        Floats<V> xs = floats_of(x);
        const Floats<V> dzs = floats_of(dz);
        slopes.each([&](int j, const Slope& slope) { xs.values[j] = slope(xs.values[j], dzs.values[j]); });
        store<T, V>(dx, place, vector_of<T>(xs));
        if (dresidual) store<T, V>(dresidual, place, dz);
    }

    // Of a window that is read, or read again.
    template <Gate G, int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T, V>& from,
                                  const Channels<V, L, Slope>& slopes) const {
        const Gradients to = at(window.origin);
        const auto here = from.at(window.origin);
        window.template each_vector<2>(
            [&](int, Place<L> place) { return Given<G, T, V>(here, place); },
            [&](int, Place<L> place, unsigned offset, const Given<G, T, V>& given) {
                to.template put<V>(given.x, given.dz(slopes.at(offset)), slopes.at(offset), place);
            });
    }
    template <int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T, V>& from,
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

    template <Gate G, class Affines>
    BNFOLD_DEVICE void take(const Window<V, L>& window, const Source<T, V>& from, const Affines& affines,
                            Sums (&sums)[A]) const {
        const auto here = from.at(window.origin);
        window.template each_vector<2>(
            [&](int, Place<L> place) { return Given<G, T, V>(here, place); },
            [&](int slot, Place<L>, unsigned offset, const Given<G, T, V>& given) {
                const Vector<T, V> found = given.dz(affines.at(offset));
                x[slot] = given.x;
                dz[slot] = found;
                if constexpr (L != Layout::planes) {
                    const Floats<V> xs = floats_of(given.x), dzs = floats_of(found);
                    affines.at(offset).each([&](int j, const Affine& affine) {
                        sums[j % A].dz += dzs.values[j];
                        sums[j % A].dz_x += dzs.values[j] * (xs.values[j] - affine.mean);
                    });
                }
            });
    }
    template <class Affines>
    BNFOLD_DEVICE void take(const Window<V, L>& window, const Source<T, V>& from, const Affines& affines,
                            Sums (&sums)[A], bool relu) const {
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

// What units that pass through a ring do: see below.
template <class P>
struct Totals;
template <class T, class P, int V, Layout L>
struct BackwardRing;

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(kThreads)
backward(const T* x, const T* dy, const unsigned char* mask, const P* weight, const P* bias, const float* mean,
         const float* invstd, T* dx, T* dresidual, P* dweight, P* dbias, float* sum_dz, float* sum_dz_x,
         Sums* letters, unsigned* words, long long outer, int channels, int inner, int group, int ranks, int window,
         int relu, int frozen) {
    constexpr int A = L == Layout::columns ? V : 1;
    const Source<T, V> source = {x, dy, mask};
    const Gradients<T> gradients = {dx, dresidual};
    if constexpr (E == Exchange::ring) {
        const Shape shape = {outer, channels, inner, group, ranks, window};
        const Totals<P> totals = {dweight, dbias, sum_dz, sum_dz_x};
        const BackwardRing<T, P, V, L> ring = {shape, source, gradients, weight, bias, mean,
                                               invstd, totals, letters,  words, frozen != 0};
        ring.pass(relu != 0);
        return;
    }
    const int c = port::thread(), rank = port::block() % ranks;
    Part<V, L> part({outer, channels, inner, group, ranks, window}, rank);
    const int windows = part.windows(), period = L == Layout::columns ? static_cast<int>(part.row) : 1;
    const float share = 1.0f / (static_cast<float>(outer) * static_cast<float>(inner));
    auto* staged_x = reinterpret_cast<Vector<T, V>*>(port::shared());
    const Stage<T, V, L> stage = {staged_x, staged_x + window};
    auto* affine = reinterpret_cast<Affine*>(stage.dz + window);
    auto* slope = reinterpret_cast<Slope*>(affine + kMostChannels);
    auto* posted = reinterpret_cast<Sums*>(slope + kMostChannels);
    auto* totals = posted + kMostChannels;
    auto* inverse = reinterpret_cast<float*>(totals + kMostChannels);
    auto* scratch = reinterpret_cast<Sums*>(inverse + kMostChannels);
    Mailbox<E, Sums> box = {posted, letters, words, group, ranks, rank, 0};

    for (int unit = port::block() / ranks; static_cast<long long>(unit) * group < channels;
         unit += port::blocks() / ranks) {
        part.turn_to(unit);
        box.unit = unit;
        const int channel = part.first + c;
        const bool own = c < part.width;
        if (own) {
            affine[c] = affine_of(channel, weight, bias, mean, invstd);
            inverse[c] = invstd[channel];
        }
        port::sync_block();
        const Channels<V, L> affines(part, affine);
        const auto finish = [&](int of, const Sums& all) {
            const float through_x = all.dz_x * share * inverse[of] * inverse[of];
            slope[of] = {affine[of], frozen ? 0 : all.dz * share, frozen ? 0 : through_x};
            totals[of] = all;
        };
        const auto post = [&](int of, const Sums& mine) {
            if constexpr (E == Exchange::none) {
                finish(of, mine);
            } else {
                box.post(of, mine);
            }
        };
        Sums sums[A];   // over all windows, but for `planes`, whose warps change channels between windows
        Sums mine;
        for (int i = 0; i < windows; ++i) {
            const Window<V, L> here(part, i);
            stage.take(here, source, affines, sums, relu != 0);
            if constexpr (L == Layout::planes) {
                port::sync_block();
                const Sweep<V> sweep(here);
                const float from = affine[sweep.channel()].mean;
                const T* x_values = reinterpret_cast<const T*>(stage.x);
                const T* dz_values = reinterpret_cast<const T*>(stage.dz);
                Sums of_window[1];
                sweep.each_value([&](unsigned k) {
                    const float dz_value = to_float(dz_values[k]);
                    of_window[0].dz += dz_value;
                    of_window[0].dz_x += dz_value * (to_float(x_values[k]) - from);
                });
                put(of_window, 1, scratch);
                port::sync_block();
                if (own) {
                    for (int warp = sweep.first_warp(c); warp < kWarps; warp += sweep.present) {
                        mine = {mine.dz + scratch[warp].dz, mine.dz_x + scratch[warp].dz_x};
                    }
                }
                // The next window's first barrier comes before anything that this one reads is changed.
            }
        }
        if constexpr (L == Layout::planes) {
            if (own) post(c, mine);
        } else {
            put(sums, period, scratch);
            port::sync_block();
            each_channel<kWarps>(part.width, [&](int of, bool first) {
                const Sums all = whole<kWarps>(kWarps, [&](int warp) { return scratch[warp * A * period + of]; });
                if (first) post(of, all);
            });
        }
        if constexpr (E != Exchange::none) {
            const int next = unit + port::blocks() / ranks;
            if (E == Exchange::grid && static_cast<long long>(next) * group < channels) {
                Part<V, L> ahead = part;
                ahead.turn_to(next);
                const Window<V, L> window(ahead, 0);
                window.prefetch(x, kAhead / 2);
                window.prefetch(dy, kAhead / 2);
            }
            box.wait();
            constexpr int lanes = E == Exchange::cluster ? 8 : kListeners<V, L>;
            constexpr int most = E == Exchange::cluster ? lanes : kMostRanks;
            each_channel<lanes>(part.width, [&](int of, bool first) {
                const Sums all = whole<lanes, most>(ranks, [&](int other) { return box.read(of, other); });
                if (first) finish(of, all);
            });
        }
        box.leave();
        if (dx) {
            const Channels<V, L, Slope> slopes(part, slope);
            for (int i = windows; i-- > 0;) {
                const Window<V, L> here(part, i);
                // By the slopes, for others may already be at the next unit's affine maps; nobody asks for these sums.
                if (i < windows - 1) stage.take(here, source, slopes, sums, relu != 0);
                const Gradients<T> to = gradients.at(here.origin);
                here.template each_vector<1>(
                    [&](int slot, Place<L>) { return slot; },
                    [&](int, Place<L> place, unsigned offset, int slot) {
                        to.template put<V>(stage.x[slot], stage.dz[slot], slopes.at(offset), place);
                    });
            }
        }
        if (rank == 0 && own) {
            const Sums all = totals[c];
            if (dweight) dweight[channel] = from_float<P>(all.dz_x * inverse[c]);
            if (dbias) dbias[channel] = from_float<P>(all.dz);
            if (sum_dz) {
                sum_dz[channel] = all.dz;
                sum_dz_x[channel] = all.dz_x;
            }
        }
        // As in forward: nothing that this unit still reads is changed before the next one's first barrier.
    }
}

}  // namespace bnfold

#include "backward_ring.cuh"
