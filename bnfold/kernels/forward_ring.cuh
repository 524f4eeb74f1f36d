// Forward of units that pass through a ring: see ring.cuh and long_ring.cuh. The statistics are those of forward.cuh, of
// a whole part at one time.

#pragma once

#include "long_ring.cuh"
#include "outcome.cuh"

namespace bnfold {

// What becomes of y, known before the first vector.
enum class Finish { plain, relu, added, added_relu };

template <class T, class P, int V, Layout L, Finish F>
struct ForwardTask {
    using Place = typename Track<V, L>::Place;
    static constexpr int A = L == Layout::columns ? V : 1;
    static constexpr int tensors = 1, vectors = 2;
    static constexpr bool notes = false;
    static constexpr bool fetches = F == Finish::added || F == Finish::added_relu, recalls = fetches;
    static constexpr bool rectifies = F == Finish::relu || F == Finish::added_relu;

    Part<V, L>& part;
    const T *x, *residual;
    T* y;
    unsigned char* mask;
    const P *weight, *bias;
    const Outcome<P>& outcome;
    Team& team;
    Moments* letters;   // [channels][ranks]
    // In shared memory, of a unit's channels: the map of the one that is written, its squared deviations, and what is
    // known of it and of the next two; then scratch.
    Affine* affine;
    float* m2;
    Known* knowns;
    Counted* scratch;
    const float* numbers;   // of a channel's values, by rank
    float part_share;       // 1 / those of this rank
    Deviations found[A] = {};

    BNFOLD_DEVICE static Floats<V> values(const port::Bits16& bits) {
        return floats_of(__builtin_bit_cast(Vector<T, V>, bits));
    }
    // Lanes that hold different channels, a power of two; and the first of this thread's channels.
    BNFOLD_DEVICE int period() const { return L == Layout::columns ? static_cast<int>(part.row) : 1; }
    BNFOLD_DEVICE int own() const { return L == Layout::columns ? (port::thread() & (period() - 1)) * A : 0; }

    BNFOLD_DEVICE const port::Bits16* source(int, Place at) const {
        return reinterpret_cast<const port::Bits16*>(x) + at;
    }
    BNFOLD_DEVICE void prepare() const {}
    BNFOLD_DEVICE void prepare(int) const {}
    BNFOLD_DEVICE Known* known(int k) const { return knowns + k % 3 * kMostChannels; }
    BNFOLD_DEVICE void begin(int k, const port::Bits16* slot) {
        const Floats<V> first = values(*slot);
#pragma unroll
        for (int i = 0; i < A; ++i) found[i].begin(first.values[i]);
        const int c = port::thread();
        if (c < team.group) {
            part.turn_to(team.unit(k));
            known(k)[c] = known_of(part, x, c, weight, bias);
        }
    }
    struct Note {};
    struct Origins {};
    BNFOLD_DEVICE Note note(Place) const { return {}; }
    BNFOLD_DEVICE Origins origins(int) const { return {}; }
    template <bool Stays>
    BNFOLD_DEVICE void add(const port::Bits16* slot, Origins, Note) {
        const Floats<V> more = values(*slot);
#pragma unroll
        for (int j = 0; j < V; ++j) found[j % A].add(more.values[j]);
    }
    BNFOLD_DEVICE void centre(int vectors) {
        const float count = static_cast<float>(vectors * (V / A)), share = port::reciprocal(count);
#pragma unroll
        for (int i = 0; i < A; ++i) found[i].centre(count, share);
    }

    BNFOLD_DEVICE void tell(int k, int vectors) {
        const float own_count = static_cast<float>(vectors * (V / A));
        const float share = port::reciprocal(own_count < 1 ? 1 : own_count);
        const Left<A> left = {period()};
        Moments sets[A];
        port::sync_block();  // what is known is there
#pragma unroll
        for (int i = 0; i < A; ++i) {
            if (vectors != 0) sets[i] = found[i].moments(share, known(k)[own() + i].near);
        }
        put(sets, own_count, left, scratch);
        port::sync_block();
        each_channel<kWarps>(team.group, [&](int c, bool first) {
            const auto at = [&](int warp, int n) { return scratch[left.place(c, warp, n / kWarps)]; };
            const auto get = [&](int warp, int n) { return at(warp, n).set(); };
            const auto number = [&](int warp, int n) { return at(warp, n).count; };
            const Moments all = whole<kWarps, Left<A>::most>(left.sets(), get, number, part_share);
            if (first) letters[static_cast<long long>(team.channel(k) + c) * team.ranks + team.rank] = all;
        });
        team.tell(k);
    }
    BNFOLD_DEVICE void hear(int k) const {
        team.hear(k);
        each_channel<kListeners<V, L>>(team.group, [&](int c, bool first) {
            const Moments* box = letters + static_cast<long long>(team.channel(k) + c) * team.ranks;
            const auto get = [&](int lane, int n) { return (box + lane)[n]; };
            const auto number = [&](int lane, int n) { return (numbers + lane)[n]; };
            const Moments all = whole<kListeners<V, L>, kMostRanks>(team.ranks, get, number, outcome.share);
            if (first) {
                affine[c] = known(k)[c].affine(all, outcome);
                m2[c] = all.m2;
            }
        });
        port::sync_block();
    }
    // The unit was written.
    BNFOLD_DEVICE void leave(int k) const {
        const int c = port::thread();
        if (team.rank == 0 && c < team.group) outcome.note(team.channel(k) + c, affine[c].mean, m2[c]);
    }

    struct Channels {
        Affine own[A];
    };
    using More = port::Bits16;
    using Again = More;

    BNFOLD_DEVICE Channels channels() const {
        Channels found;
#pragma unroll
        for (int i = 0; i < A; ++i) found.own[i] = affine[own() + i];
        return found;
    }
    BNFOLD_DEVICE More fetch(Place at) const {
        if constexpr (!fetches) return {};
        return port::load_once(reinterpret_cast<const port::Bits16*>(residual) + at);
    }
    BNFOLD_DEVICE Again recall(Place at) const { return fetch(at); }
    BNFOLD_DEVICE bool writes() const { return F != Finish::plain || y != nullptr; }
    BNFOLD_DEVICE void write(const port::Bits16* slot, Place at, const Channels& by, const More& added) const {
        if (!writes()) return;  // the statistics alone are wanted
        Floats<V> floats = values(*slot);
#pragma unroll
        for (int j = 0; j < V; ++j) floats.values[j] = by.own[j % A](floats.values[j]);
        if constexpr (fetches) {
            const Floats<V> more = values(added);
#pragma unroll
            for (int j = 0; j < V; ++j) floats.values[j] += more.values[j];
        }
        const Vector<T, V> out = finished<rectifies, T>(floats);
        store<T, V>(y, at, out);
        if (F == Finish::added_relu && mask) mask[at] = static_cast<unsigned char>(passed(out));
    }
    BNFOLD_DEVICE void write_again(const port::Bits16* slot, Place at, const Channels& by, const Again& added) const {
        write(slot, at, by, added);
    }
};

// All units of a block.
template <class T, class P, int V, Layout L, Exchange E>
struct ForwardRing {
    const Shape& shape;
    const T *x, *residual;
    T* y;
    unsigned char* mask;
    const P *weight, *bias;
    const Outcome<P>& outcome;
    Moments* letters;
    unsigned* words;

    template <Finish F>
    BNFOLD_DEVICE void pass() const {
        Team team(shape, words);
        Part<V, L> part(shape, team.rank);
        part.turn_to(team.unit(0));
        auto* ring = reinterpret_cast<port::Bits16*>(port::shared());
        auto* affine = reinterpret_cast<Affine*>(ring + shape.window);
        auto* m2 = reinterpret_cast<float*>(affine + kMostChannels);
        auto* knowns = reinterpret_cast<Known*>(m2 + kMostChannels);
        auto* numbers = reinterpret_cast<float*>(knowns + 3 * kMostChannels);
        auto* scratch = reinterpret_cast<Counted*>(numbers + kMostRanks);
        const Shares shares = part.shares();
        const float own = part.values_of(0, shares, team.rank), share = own == 0 ? 0 : 1.0f / own;
        if (port::thread() < shape.ranks) numbers[port::thread()] = part.values_of(0, shares, port::thread());
        ForwardTask<T, P, V, L, F> task = {part, x,       residual, y,      mask, weight, bias,    outcome,
                                           team, letters, affine,   m2,     knowns, scratch, numbers, share};
        if constexpr (E == Exchange::ring) {
            Ring<decltype(task), V, L>(task, part, ring, team).pass();
        } else {
            LongRing<decltype(task), V, L>(task, part, ring, team).pass();
        }
        if (port::block() == 0 && port::thread() == 0) outcome.count();
    }
    BNFOLD_DEVICE void pass(bool relu) const {
        if (residual) {
            relu ? pass<Finish::added_relu>() : pass<Finish::added>();
        } else {
            relu ? pass<Finish::relu>() : pass<Finish::plain>();
        }
    }
};

}  // namespace bnfold
