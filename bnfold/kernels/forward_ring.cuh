// Forward of units that pass through a ring: see ring.cuh.
//
// The sums of a thread are of deviations d from its own first value of the channel, and of d^2: with the few values that
// a thread has of a unit, they lose little even where that value is far from the others. Threads and blocks merge as in
// moments.cuh; means are told as two floats, for one has not their digits.

#pragma once

#include "outcome.cuh"
#include "ring.cuh"

namespace bnfold {

// The moments of `count` values: their mean is near + off.
struct Shifted {
    float count, near, off, m2;
};

// Of a block's values of a channel, for the others: their mean is high + low.
struct Letter {
    float high, low, m2;

    BNFOLD_DEVICE double mean() const { return static_cast<double>(high) + low; }
};

// What becomes of y, known before the first vector; nothing where only the statistics are wanted.
enum class Finish { nothing, plain, relu, added, added_relu, noted };

template <class T, class P, int V, Layout L, Finish F>
struct ForwardTask {
    static constexpr int A = L == Layout::columns ? V : 1;
    static constexpr int tensors = 1, vectors = 2;
    static constexpr bool notes = false;
    static constexpr bool fetches = F == Finish::added || F == Finish::added_relu || F == Finish::noted;
    static constexpr bool rectifies = F == Finish::relu || F == Finish::added_relu || F == Finish::noted;

    const Part<V, L>& part;
    const T *x, *residual;
    T* y;
    unsigned char* mask;
    const Outcome<P>& outcome;
    Team& team;
    Letter* letters;    // [channels][ranks]
    Affine* affine;     // of the unit's channels, in shared memory
    Shifted* scratch;   // [warps][slots]
    float near[A] = {}, sum[A] = {}, squares[A] = {};

    BNFOLD_DEVICE static Floats<V> values(const port::Bits16& bits) {
        return floats_of(__builtin_bit_cast(Vector<T, V>, bits));
    }
    // Channels of a warp, and lanes that hold different ones.
    BNFOLD_DEVICE int period() const { return L == Layout::columns ? static_cast<int>(part.row) : 1; }
    BNFOLD_DEVICE int own() const { return L == Layout::columns ? port::thread() % period() * A : 0; }

    BNFOLD_DEVICE const port::Bits16* source(int, long long at) const {
        return reinterpret_cast<const port::Bits16*>(reinterpret_cast<const char*>(x) + at);
    }
    BNFOLD_DEVICE void begin(const port::Bits16* slot) {
        const Floats<V> first = values(*slot);
#pragma unroll
        for (int i = 0; i < A; ++i) {
            near[i] = first.values[i];
            sum[i] = squares[i] = 0;
        }
    }
    struct Note {};
    struct Origins {};
    BNFOLD_DEVICE Note note(long long) const { return {}; }
    BNFOLD_DEVICE Origins origins() const { return {}; }
    BNFOLD_DEVICE void add(const port::Bits16* slot, Origins, Note) {
        const Floats<V> found = values(*slot);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const float d = found.values[j] - near[j % A];
            sum[j % A] += d;
            squares[j % A] += d * d;
        }
    }

    BNFOLD_DEVICE void tell(int k, int vectors) {
        const int thread = port::thread(), slots = period() * A;
        float count = static_cast<float>(vectors) * (V / A);
        const float each = vectors == 0 ? 0 : 1.0f / count;
#pragma unroll
        for (int i = 0; i < A; ++i) {
            if (vectors == 0) near[i] = sum[i] = squares[i] = 0;
            squares[i] -= sum[i] * (sum[i] * each);
            sum[i] *= each;
        }
        // From here on, near + sum is the mean, and `squares` are those of the deviations from it. The lower lane's
        // set comes first.
        for (int mask = period(); mask < 32; mask *= 2) {
            const float others = port::shuffle_xor(count, mask), both = count + others;
            const bool low = (thread & mask) == 0;
            const float share = both == 0 ? 0 : (low ? others : count) / both, weight = (low ? count : others) * share;
            count = both;
#pragma unroll
            for (int i = 0; i < A; ++i) {
                const float other_near = port::shuffle_xor(near[i], mask), other_sum = port::shuffle_xor(sum[i], mask);
                const float from = low ? near[i] : other_near, off = low ? sum[i] : other_sum;
                const float gap = low ? (other_near - from) + (other_sum - off) : (near[i] - from) + (sum[i] - off);
                squares[i] = squares[i] + port::shuffle_xor(squares[i], mask) + gap * gap * weight;
                near[i] = from;
                sum[i] = off + gap * share;
            }
        }
        if (thread % 32 < period()) {
#pragma unroll
            for (int i = 0; i < A; ++i) {
                scratch[thread / 32 * slots + thread % 32 * A + i] = {count, near[i], sum[i], squares[i]};
            }
        }
        port::sync_block();
        if (thread < team.group) {
            const auto mean_of = [](const Shifted& set) { return static_cast<double>(set.near) + set.off; };
            const double from = mean_of(scratch[thread]);
            double all = 0, gaps = 0, m2 = 0;
#pragma unroll 1
            for (int warp = 0; warp < kThreads / 32; ++warp) {
                const Shifted set = scratch[warp * slots + thread];
                if (set.count == 0) continue;
                all += set.count;
                gaps += set.count * (mean_of(set) - from);
            }
            const double mean = from + (all == 0 ? 0 : gaps / all);
#pragma unroll 1
            for (int warp = 0; warp < kThreads / 32; ++warp) {
                const Shifted set = scratch[warp * slots + thread];
                if (set.count == 0) continue;
                const double gap = mean_of(set) - mean;
                m2 += set.m2 + set.count * gap * gap;
            }
            const float high = static_cast<float>(mean);
            Letter* box = letters + static_cast<long long>(team.channel(k) + thread) * team.ranks;
            box[team.rank] = {high, static_cast<float>(mean - high), static_cast<float>(m2)};
        }
        team.tell(k);
    }

    BNFOLD_DEVICE void hear(int k) {
        const int lane = port::thread() % 32, first = team.channel(k);
        const double all = static_cast<double>(part.shape.outer) * part.shape.inner;
        team.hear(k);
        for (int c = port::thread() / 32; c < team.group; c += kThreads / 32) {
            const Letter* box = letters + static_cast<long long>(first + c) * team.ranks;
            const double from = box[0].mean();
            double gaps = 0, m2 = 0;
#pragma unroll 1
            for (int r = lane; r < team.ranks; r += 32) gaps += part.values(r) * (box[r].mean() - from);
            for (int mask = 1; mask < 32; mask *= 2) gaps += shuffle_xor(gaps, mask);
            const double mean = from + gaps / all;
#pragma unroll 1
            for (int r = lane; r < team.ranks; r += 32) {
                const double gap = box[r].mean() - mean;
                m2 += box[r].m2 + part.values(r) * (gap * gap);
            }
            for (int mask = 1; mask < 32; mask *= 2) m2 += shuffle_xor(m2, mask);
            if (lane == 0) affine[c] = outcome.of(first + c, {all, mean, m2}, team.rank == 0);
        }
        port::sync_block();
    }

    struct Channels {
        Affine own[A];
    };
    using More = Vector<T, fetches ? V : 1>;

    BNFOLD_DEVICE Channels channels() const {
        Channels found;
#pragma unroll
        for (int i = 0; i < A; ++i) found.own[i] = affine[own() + i];
        return found;
    }
    BNFOLD_DEVICE More fetch(long long at) const {
        if constexpr (!fetches) return {};
        return load<T, fetches ? V : 1>(reinterpret_cast<const T*>(reinterpret_cast<const char*>(residual) + at));
    }
    BNFOLD_DEVICE void put(const port::Bits16* slot, long long at, const Channels& by, const More& added) const {
        if constexpr (F == Finish::nothing) return;
        Floats<V> floats = values(*slot);
#pragma unroll
        for (int j = 0; j < V; ++j) floats.values[j] = by.own[j % A](floats.values[j]);
        if constexpr (fetches) {
            const Floats<V> more = floats_of(added);
#pragma unroll
            for (int j = 0; j < V; ++j) floats.values[j] += more.values[j];
        }
        const Vector<T, V> out = finished<rectifies, T>(floats);
        store<T, V>(reinterpret_cast<T*>(reinterpret_cast<char*>(y) + at), out);
        if constexpr (F == Finish::noted) mask[at / 16] = static_cast<unsigned char>(passed(out));
    }
};

// All units of a block. Its shared memory: the ring, [kMostChannels] maps, and scratch.
template <class T, class P, int V, Layout L>
struct ForwardRing {
    const Shape& shape;
    const T *x, *residual;
    T* y;
    unsigned char* mask;
    const Outcome<P>& outcome;
    Letter* letters;
    unsigned* words;

    template <Finish F>
    BNFOLD_DEVICE void pass() const {
        Team team(shape, words);
        const Part<V, L> part(shape, team.number, team.rank);
        auto* ring = reinterpret_cast<port::Bits16*>(port::shared());
        auto* affine = reinterpret_cast<Affine*>(ring + shape.window);
        auto* scratch = reinterpret_cast<Shifted*>(affine + kMostChannels);
        ForwardTask<T, P, V, L, F> task = {part, x, residual, y, mask, outcome, team, letters, affine, scratch};
        Ring<decltype(task), V, L>(task, part, ring, team, sizeof(T)).pass();
    }
    BNFOLD_DEVICE void pass(bool relu) const {
        if (!y) {
            pass<Finish::nothing>();
        } else if (!residual) {
            relu ? pass<Finish::relu>() : pass<Finish::plain>();
        } else if (mask) {
            pass<Finish::noted>();
        } else {
            relu ? pass<Finish::added_relu>() : pass<Finish::added>();
        }
    }
};

}  // namespace bnfold
