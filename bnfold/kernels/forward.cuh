// Batch norm in training: y = act((x - mean) / sqrt(var + eps) * weight + bias + residual) with the mean and
// variance of each channel, in one launch that reads x once if a unit's blocks can hold it on chip.
//
// The statistics are found in one sweep, while values go to shared memory. Of the windows, the last one is still at
// hand when they are known; those before it are read again, the latest first, for they are the likeliest to be in L2.

#pragma once

#include "forward_ring.cuh"

namespace bnfold {

// One sweep over a window: into shared memory, and added up by the thread that loads. Gives its values of a channel.
template <class T, int V, Layout L, int A>
BNFOLD_DEVICE float sweep(const Window<V, L>& window, const T* x, Vector<T, V>* staged, Deviations (&found)[A]) {
    const T* const from = x + window.origin;
    window.template each_vector<port::loads_ahead>(
        [&](int, Place<L> place) { return load<T, V>(from, place); },
        [&](const Vector<T, V>& first) {
            const Floats<V> values = floats_of(first);
#pragma unroll
            for (int i = 0; i < A; ++i) found[i].begin(values.values[i]);
        },
        [&](int slot, Place<L>, unsigned, const Vector<T, V>& vector) {
            staged[slot] = vector;
            const Floats<V> values = floats_of(vector);
#pragma unroll
            for (int j = 0; j < V; ++j) found[j % A].add(values.values[j]);
        });
    return static_cast<float>(window.vectors() * (V / A));
}

// For `planes`, whose warps change channels between windows: thread c gets the window's moments of channel c.
template <class T, int V>
BNFOLD_DEVICE Moments sweep_planes(const Window<V, Layout::planes>& window, const T* x, Vector<T, V>* staged,
                                   const Known* known, Counted* scratch) {
    const T* const from = x + window.origin;
    window.template each_vector<4>(
        [&](int, Place<Layout::planes> place) { return load<T, V>(from, place); },
        [&](int slot, Place<Layout::planes>, unsigned, const Vector<T, V>& vector) { staged[slot] = vector; });
    port::sync_block();
    const T* values = reinterpret_cast<const T*>(staged);
    const Sweep<V> sweep(window);
    Deviations found;
    float count = 0;
    sweep.each_value([&](unsigned i) {
        const float value = to_float(values[i]);
        if (count == 0) found.begin(value);
        found.add(value);
        count += 1;
    });
    Moments sets[] = {count == 0 ? Moments{} : found.moments(1.0f / count, known[sweep.channel()].near)};
    put(sets, count, Left<1>{1}, scratch);
    port::sync_block();
    Moments all;
    float before = 0;
    const int c = port::thread();
    if (c < window.part.width) {
        for (int warp = sweep.first_warp(c); warp < kWarps; warp += sweep.present) {
            all = merged(all, scratch[warp].set(), Weights(before, scratch[warp].count));
            before += scratch[warp].count;
        }
    }
    return all;
}

template <class T, class P, int V, Layout L, Exchange E>
BNFOLD_KERNEL(kThreads)
forward(const T* x, const T* residual, T* y, unsigned char* mask, const P* weight, const P* bias, float* mean,
        float* invstd, P* running_mean, P* running_var, long long* batches, Moments* letters, unsigned* words,
        long long outer, int channels, int inner, int group, int ranks, int window, float eps, float momentum,
        int relu) {
    // Where one file is compiled for many architectures, some have an instance that is never launched.
    if (E == Exchange::cluster && !port::has_clusters) return;
    if constexpr (E == Exchange::ring || E == Exchange::long_ring) {
        const float values = static_cast<float>(outer) * static_cast<float>(inner);
        const Outcome<P> outcome = {mean, invstd, running_mean, running_var, batches,
                                    values, 1.0f / values, eps, momentum, !y};
        const Shape shape = {outer, channels, inner, group, ranks, window};
        const ForwardRing<T, P, V, L, E> ring = {shape, x, residual, y, mask, weight, bias, outcome, letters, words};
        ring.pass(relu != 0);
        return;
    }
    constexpr int A = L == Layout::columns ? V : 1;
    const int teams = Shares::quotient(port::blocks(), ranks), team = Shares::quotient(port::block(), ranks);
    const int rank = port::block() - team * ranks, c = port::thread();
    Part<V, L> part({outer, channels, inner, group, ranks, window}, rank);
    const int windows = part.windows(), period = L == Layout::columns ? static_cast<int>(part.row) : 1;
    const Left<A> left = {period};
    const int own_channel = (port::thread() & (period - 1)) * A;   // the first one
    const float values = static_cast<float>(outer) * static_cast<float>(inner);
    const Outcome<P> outcome = {mean, invstd, running_mean, running_var, batches,
                                values, 1.0f / values, eps, momentum, !y};
    auto* staged = reinterpret_cast<Vector<T, V>*>(port::shared());
    auto* affine = reinterpret_cast<Affine*>(staged + window);
    auto* knowns = reinterpret_cast<Known*>(affine + kMostChannels);   // of this unit, and of the one before
    auto* posted = reinterpret_cast<Moments*>(knowns + 2 * kMostChannels);
    auto* m2 = reinterpret_cast<float*>(posted + kMostChannels);
    auto* numbers = m2 + kMostChannels;   // of a channel's values, by rank; not for `planes`
    auto* scratch = reinterpret_cast<Counted*>(numbers + kMostRanks);
    const Shares shares = part.shares();
    if (L != Layout::planes && E != Exchange::none && c < ranks) numbers[c] = part.values_of(0, shares, c);
    Mailbox<E, Moments> box = {posted, letters, words + team, group, ranks, rank, 0};

    int turn = 0;
    for (int unit = team; static_cast<long long>(unit) * group < channels; unit += teams, turn ^= 1) {
        part.turn_to(unit);
        box.unit = unit;
        Known* const known = knowns + turn * kMostChannels;
        const int channel = part.first + c;
        const bool own = c < part.width;
        if (own) {  // while others load the first window, before which nobody asks for it
            known[c] = known_of(part, x, c, weight, bias);
        }
        const auto finish = [&](int of, const Moments& all) {
            const Known begun = known[of];
            affine[of] = begun.affine(all, outcome);
            m2[of] = all.m2;
        };
        const auto post = [&](int of, const Moments& mine) {
            if constexpr (E == Exchange::none) {
                finish(of, mine);
            } else {
                box.post(of, mine);
            }
        };
        for (int i = 0; i < windows; ++i) {
            const Window<V, L> here(part, i);
            // Of the windows so far, by one thread of each channel.
            const auto join = [&](int of, const Moments& found) {
                const float before = part.values_of(of, part.begin, here.begin);
                const Weights weights(before, here.values_of(of));
                const Moments all = i == 0 ? found : merged(posted[of], found, weights);
                if (i == windows - 1) {
                    post(of, all);
                } else {
                    posted[of] = all;
                }
            };
            if constexpr (L == Layout::planes) {
                const Moments found = sweep_planes(here, x, staged, known, scratch);
                if (own) join(c, found);
                // The next window's first barrier comes before anything that this one reads is changed.
            } else {
                Deviations found[A];
                Moments sets[A];
                const float count = sweep(here, x, staged, found), share = port::reciprocal(count < 1 ? 1 : count);
                port::sync_block();  // what is known is there, and the last window's sets are read
#pragma unroll
                for (int k = 0; k < A; ++k) {
                    if (count != 0) sets[k] = found[k].moments(share, known[own_channel + k].near);
                }
                put(sets, count, left, scratch);
                port::sync_block();
                each_channel<kWarps>(part.width, [&](int of, bool first) {
                    const float values = here.values_of(of), share = port::reciprocal(values < 1 ? 1 : values);
                    const auto at = [&](int warp, int k) { return scratch[left.place(of, warp, k / kWarps)]; };
                    const auto get = [&](int warp, int k) { return at(warp, k).set(); };
                    const auto number = [&](int warp, int k) { return at(warp, k).count; };
                    const Moments all = whole<kWarps, Left<A>::most>(left.sets(), get, number, share);
                    if (first) join(of, all);
                });
            }
        }
        if constexpr (E != Exchange::none) {
            const int next = unit + teams;
            if (E == Exchange::grid && static_cast<long long>(next) * group < channels) {
                Part<V, L> ahead = part;  // memory shall not rest while blocks wait
                ahead.turn_to(next);
                Window<V, L>(ahead, 0).prefetch(x, kAhead);
            }
            box.wait();
            constexpr int lanes = E == Exchange::cluster ? 8 : kListeners<V, L>;
            constexpr int most = E == Exchange::cluster ? lanes : kMostRanks;
            each_channel<lanes>(part.width, [&](int of, bool first) {
                const auto get = [&](int lane, int k) { return box.read(of, lane, k); };
                const auto count = [&](int lane, int k) {
                    if constexpr (L == Layout::planes) return part.values_of(of, shares, lane + k);
                    return (numbers + lane)[k];
                };
                const Moments all = whole<lanes, most>(ranks, get, count, outcome.share);
                if (first) finish(of, all);
            });
        }
        box.leave();
        if (y) {
            const Channels<V, L> affines(part, affine);
            for (int i = windows; i-- > 0;) {
                const Window<V, L> here(part, i);
                if (i < windows - 1) {  // each thread reads again what it then writes
                    const T* const from = x + here.origin;
                    here.template each_vector<8>(
                        [&](int, Place<L> place) { return load<T, V>(from, place); },
                        [&](int slot, Place<L>, unsigned, const Vector<T, V>& vector) { staged[slot] = vector; });
                }
                const auto at_hand = [&](int slot, Place<L>) { return staged[slot]; };
                normalize<2, T, V>(here, at_hand, affines, residual, y, mask, relu != 0);
            }
        }
        if (rank == 0 && own) outcome.note(channel, affine[c].mean, m2[c]);
        if (unit == 0 && rank == 0 && c == 0) outcome.count();
        box.left();
        // The next unit's first barrier comes before it changes anything that this one reads.
    }
}

}  // namespace bnfold
