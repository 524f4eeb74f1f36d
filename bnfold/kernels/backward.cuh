// The gradients of forward.cuh: dz is dy where the ReLU let the value pass, and
//
//   dx = weight * invstd * (dz - mean(dz) - (x - mean) * invstd^2 * mean(dz * (x - mean)))
//
// with the means over a channel, or without them for frozen statistics. One launch, which reads x and dy once if a
// unit's blocks can hold both on chip.

#pragma once

#include "backward_ring.cuh"

namespace bnfold {

// x and dz of a window: put into shared memory and, but for `planes`, added up.
template <class T, int V, Layout L>
struct Stage {
    static constexpr int A = L == Layout::columns ? V : 1;
    Vector<T, V>*x, *dz;

    template <Gate G, class Affines>
    BNFOLD_DEVICE void take(const Window<V, L>& window, const Source<T, V>& from, const Affines& affines,
                            Sums (&sums)[A]) const {
        const auto here = from.at(window.origin);
        window.template each_vector<L == Layout::planes ? 2 : 3>(
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

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(kThreads)
backward(const T* x, const T* dy, const unsigned char* mask, const P* weight, const P* bias, const float* mean,
         const float* invstd, T* dx, T* dresidual, P* dweight, P* dbias, float* sum_dz, float* sum_dz_x,
         Sums* letters, unsigned* words, long long outer, int channels, int inner, int group, int ranks, int window,
         int relu, int frozen) {
    constexpr int A = L == Layout::columns ? V : 1;
    const Source<T, V> source = {x, dy, mask};
    const Gradients<T> gradients = {dx, dresidual};
    const Totals<P> totals_to = {dweight, dbias, sum_dz, sum_dz_x};
    if constexpr (E == Exchange::ring || E == Exchange::long_ring) {
        const Shape shape = {outer, channels, inner, group, ranks, window};
        const BackwardRing<T, P, V, L, E> ring = {shape, source, gradients, weight, bias, mean,
                                               invstd, totals_to, letters, words, frozen != 0};
        ring.pass(relu != 0);
        return;
    }
    const int teams = Shares::quotient(port::blocks(), ranks), team = Shares::quotient(port::block(), ranks);
    const int rank = port::block() - team * ranks, c = port::thread();
    Part<V, L> part({outer, channels, inner, group, ranks, window}, rank);
    const int windows = part.windows();
    const Left<A> left = {L == Layout::columns ? static_cast<int>(part.row) : 1};
    const float share = 1.0f / (static_cast<float>(outer) * static_cast<float>(inner));
    auto* staged_x = reinterpret_cast<Vector<T, V>*>(port::shared());
    const Stage<T, V, L> stage = {staged_x, staged_x + window};
    auto* affine = reinterpret_cast<Affine*>(stage.dz + window);
    auto* slope = reinterpret_cast<Slope*>(affine + kMostChannels);
    auto* posted = reinterpret_cast<Sums*>(slope + kMostChannels);
    auto* totals = posted + kMostChannels;
    auto* inverse = reinterpret_cast<float*>(totals + kMostChannels);
    auto* scratch = reinterpret_cast<Sums*>(inverse + kMostChannels);
    Mailbox<E, Sums> box = {posted, letters, words + team, group, ranks, rank, 0};

    for (int unit = team; static_cast<long long>(unit) * group < channels; unit += teams) {
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
                put(of_window, Left<1>{1}, scratch);
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
            put(sums, left, scratch);
            port::sync_block();
            each_channel<kWarps>(part.width, [&](int of, bool first) {
                const auto get = [&](int warp, int k) { return scratch[left.place(of, warp, k / kWarps)]; };
                const Sums all = whole<kWarps, Left<A>::most>(left.sets(), get);
                if (first) post(of, all);
            });
        }
        if constexpr (E != Exchange::none) {
            const int next = unit + teams;
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
                const Sums all = whole<lanes, most>(ranks, [&](int lane, int k) { return box.read(of, lane, k); });
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
        if (rank == 0 && own) totals_to.note(channel, totals[c], inverse[c]);
        box.left();
        // As in forward: nothing that this unit still reads is changed before the next one's first barrier.
    }
}

}  // namespace bnfold
